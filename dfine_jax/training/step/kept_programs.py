"""Compiled programs kept from one start of a command to the next.

JAX's own cache spares the compiler; to ask it, a program must be traced first, which takes Python seconds. Here a
program is found by what it is made of: this package's source, the versions below it, the machine, the configuration and
the shapes. For commands only: in a notebook, functions may be other than what the files say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pickle
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import serialize_executable

from dfine_jax.config import Config, LogConfig
from dfine_jax.errors import UserError
from dfine_jax.system.files import write_whole

_MOST = 12  # programs in a folder; those not used for longest go first
_BELOW = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
_SETTINGS = ("XLA_", "JAX_", "TF_", "CUDA_", "NVIDIA_", "DFINE_")  # beginnings of environment variables
_ELSEWHERE = ("JAX_COMPILATION_CACHE_DIR", "DFINE_CACHE")  # among them, but of no influence
_CHECKSUM_BYTES = 32


class Program(NamedTuple):
    """A compiled program and what only the one that was just compiled can tell."""

    compiled: Any
    peak_bytes: int


def file_of(folder: Path | None, *made_of: Any) -> Path | None:
    """Where the program is kept, or is to be; None: ``folder`` is None, nothing is kept.

    Args:
      made_of: what the program depends on beside the source of this package, the versions below it, settings and the
        devices; each with a ``repr`` that is complete and the same in every process.
    """
    return folder / f"{_key(made_of)}.program" if folder else None


def find(file: Path | None) -> Program | None:
    """The program that was kept there; None where there is none, or none that is whole."""
    if file is None:
        return None
    try:
        content = file.read_bytes()
        if hashlib.sha256(content[_CHECKSUM_BYTES:]).digest() != content[:_CHECKSUM_BYTES]:
            return None
        payload, in_tree, out_tree, peak_bytes = pickle.loads(content[_CHECKSUM_BYTES:])
        compiled = serialize_executable.deserialize_and_load(payload, in_tree, out_tree)
        os.utime(file)
    except (OSError, jax.errors.JaxRuntimeError):
        return None
    return Program(compiled, peak_bytes)


def keep(file: Path | None, program: Program) -> None:
    """Keep the program for the next start, where the disk has room and the backend can write it."""
    if file is None:
        return
    with contextlib.suppress(UserError, ValueError, NotImplementedError):
        content = pickle.dumps((*serialize_executable.serialize(program.compiled), program.peak_bytes))
        write_whole(file, hashlib.sha256(content).digest() + content, durable=False)
    with contextlib.suppress(OSError):  # another process does the same
        for old in sorted(file.parent.glob("*.program"), key=lambda x: -x.stat().st_mtime)[_MOST:]:
            old.unlink()


def of_config(config: Config) -> Config:
    """The configuration without what no program depends on."""
    return dataclasses.replace(config, log=LogConfig(), train=dataclasses.replace(config.train, seed=0))


def of_arrays(tree: Any) -> str:
    """Structure, shapes, types and places of the arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return f"{structure} {[(x.shape, str(x.dtype), str(getattr(x, 'sharding', ''))) for x in leaves]}"


def _key(made_of: tuple[Any, ...]) -> str:
    devices = [(d.id, d.platform, d.device_kind, d.client.platform_version) for d in jax.devices()]
    settings = {k: v for k, v in os.environ.items() if k.startswith(_SETTINGS) and k not in _ELSEWHERE}
    of_jax = {k: v for k, v in jax.config.values.items() if k != "jax_compilation_cache_dir"}
    parts = (
        _source(),
        sys.version,
        [(name, metadata.version(name)) for name in _BELOW],
        (platform.machine(), _instructions(), devices),
        (sorted(settings.items()), sorted(of_jax.items())),
        made_of,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _source() -> str:
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _instructions() -> str:
    """What the processor can do: programs for the CPU are compiled for that."""
    with contextlib.suppress(OSError):
        return next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags")), "")
    return platform.processor()
