"""ONNX Runtime Web's own files: one version, known by its checksum, or those of a folder."""

from __future__ import annotations

import base64
import hashlib
import http.client
import logging
import re
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from dfine_jax.errors import UserError
from dfine_jax.system.cache import cache_dir
from dfine_jax.system.files import replacing, telling

logger = logging.getLogger(__name__)

VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# For WebGPU, whose WebAssembly is larger and slower where no GPU is; and for WebAssembly alone.
FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
LICENCE_FILE = "LICENSE.txt"
LICENCE = """\
The files in this folder are of ONNX Runtime Web, https://github.com/microsoft/onnxruntime, where
ThirdPartyNotices.txt names the licences of what is inside them.

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
_CURE = f"on a connected machine fetch {URL} and give it, or the folder dist of any copy of the package, by --runtime"
_TIMEOUT_S = 30
_CHUNK = 1 << 18


def runtime_files(source: Path | None) -> tuple[str, dict[str, bytes]]:
    """Version and content of ``FILES``.

    Args:
      source: the package's archive, its folder or its ``dist``; None: the pinned archive, downloaded once.

    Raises:
      UserError: it lacks a file, or it is not the published archive, or there is no connection.
    """
    if source is None:
        return VERSION, _of_archive(_archive())
    if source.is_file():
        _check(source)
        return VERSION, _of_archive(source)
    folder = source / "dist" if (source / "dist").is_dir() else source
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"--runtime {source} has no {missing[0]}; give the folder dist of the npm package onnxruntime-web {VERSION}"
        )
    with telling(folder):
        found = {name: (folder / name).read_bytes() for name in FILES}
    match = re.search(rb"ONNX Runtime Web v(\S+)", found[FILES[0]][:400])
    version = match[1].decode("ascii", "replace") if match else "unknown"
    if version != VERSION:
        logger.warning("--runtime %s is version %s; this was made and tried with %s", source, version, VERSION)
    return version, found


def _archive() -> Path:
    file = cache_dir() / f"onnxruntime-web-{VERSION}.tgz"
    if file.is_file():
        _check(file)
    else:
        _download(file)
    return file


def _check(file: Path) -> None:
    with telling(file), open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha512").digest()
    if base64.b64encode(digest).decode() != SHA512:
        raise UserError(f"{file} is not onnxruntime-web {VERSION} as published (its SHA-512 is another); delete it")


def _download(file: Path) -> None:
    """To a temporary name, which becomes the file's when all of it is there and right."""
    digest = hashlib.sha512()
    try:
        with replacing(file) as target, urllib.request.urlopen(URL, timeout=_TIMEOUT_S) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=total or None, desc=file.name, unit="B", unit_scale=True, disable=None) as bar:
                while chunk := answer.read(_CHUNK):
                    target.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            if base64.b64encode(digest.digest()).decode() != SHA512:
                raise UserError(f"what {URL} sent is not the published file (its SHA-512 is another); {_CURE}")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"onnxruntime-web could not be downloaded ({getattr(error, 'reason', error)}); {_CURE}"
        ) from error


def _of_archive(file: Path) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    wanted = {f"package/dist/{name}": name for name in FILES}
    with telling(file), tarfile.open(file, "r:gz") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name in wanted else None
            if stream is not None:
                out[wanted[member.name]] = stream.read()
    return {name: out[name] for name in FILES}
