"""Compiled programs kept from one start of a command to the next.

JAX's own cache spares the compiler; to ask it, a program must be traced first, which takes Python seconds. Here a
program is found by what it is made of: this package's source, the versions below it, the machine, the configuration and
the shapes. Where that has changed and the traced program has not, it is found by its text. For commands only: in a
notebook, functions may be other than what the files say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pickle
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.monitoring
from jax.experimental import serialize_executable

from dfine_jax.config import Config, LogConfig
from dfine_jax.errors import UserError
from dfine_jax.system.files import write_whole

_MOST = 16  # programs in a folder; those not used for longest go first
_BELOW = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
_SETTINGS = ("XLA_", "JAX_", "TF_", "CUDA_", "NVIDIA_")  # beginnings of environment variables
_ELSEWHERE = ("JAX_COMPILATION_CACHE_DIR",)  # among them, but of no influence
_CHECKSUM_BYTES = 32


class Program(NamedTuple):
    """A compiled program and what only the one that was just compiled can tell."""

    compiled: Any
    peak_bytes: int  # largest memory of a device while it runs, in- and outputs included; 0 where nothing tells


class KeptPrograms:
    """The programs of a run: those that were kept, or new ones, kept for the next start.

    Those that the last such run used are read by a thread from the beginning, while the run gets ready.

    Args:
      folder: where programs are kept; None: nowhere, all are compiled.
      run: what the run is made of; each with a ``repr`` that is complete and the same in every process.
    """

    def __init__(self, folder: Path | None, *run: Any) -> None:
        self._folder = folder
        self._loading: dict[Path, Future[Program | None]] = {}
        self._used: list[str] = []
        if folder is None:
            return
        self._source = _source()
        self._run = folder / f"{_digest(self._source, *run)}.run"
        worker = ThreadPoolExecutor(1, "kept-programs")
        for name in _text(self._run).split():
            self._loading[folder / name] = worker.submit(_load, folder / name)
        worker.shutdown(wait=False)  # the thread ends with its last task

    def program(
        self,
        made_of: Sequence[Any],
        lower: Callable[[], jax.stages.Lowered],
        before_compiling: Callable[[], None] = lambda: None,
    ) -> Program:
        """What was kept, or what ``lower`` makes, compiled and kept.

        Args:
          made_of: what the program depends on beside the source of this package, the versions below it, settings and
            the devices; each with a ``repr`` that is complete and the same in every process.
          lower: traces the program.
          before_compiling: called when it has been traced or found.
        """
        if self._folder is None:
            lowered = lower()
            before_compiling()
            return _compile(lowered)
        name = self._folder / f"{_digest(self._source, *made_of)}.name"
        found = self._taken(_text(name))
        if found:
            before_compiling()
            return found
        lowered = lower()
        before_compiling()
        file = f"{_digest(lowered.as_text(), str(lowered.in_tree), str(lowered.out_tree))}.program"
        found = self._taken(file)
        if found is None:
            hits = _hits()
            found = _compile(lowered)
            if _hits() > hits:  # it is from JAX's cache: written again, it would lack its machine code
                return found
            _keep(self._folder / file, found)
            self._note(file)
        with contextlib.suppress(UserError):
            write_whole(name, file, durable=False)
        return found

    def _taken(self, name: str) -> Program | None:
        if self._folder is None or not name:
            return None
        loading = self._loading.pop(self._folder / name, None)
        found = loading.result() if loading else _load(self._folder / name)
        if found:
            self._note(name)
        return found

    def _note(self, name: str) -> None:
        """The next such run reads it from the beginning."""
        self._used.append(name)
        with contextlib.suppress(UserError):
            write_whole(self._run, "\n".join(self._used), durable=False)


def _compile(lowered: jax.stages.Lowered) -> Program:
    compiled = lowered.compile()
    return Program(compiled, peak_bytes(compiled))


def peak_bytes(compiled: Any) -> int:
    """Largest memory of a device while the program runs, in- and outputs included; 0 when the backend does not tell."""
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    whole = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return int(whole - stats.alias_size_in_bytes)


class _Count(threading.local):
    value = 0


_from_cache = _Count()


@functools.cache
def _listen() -> None:
    def count(event: str, **_: Any) -> None:
        _from_cache.value += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_listener(count)


def _hits() -> int:
    """How many programs this thread has had from JAX's cache."""
    _listen()
    return _from_cache.value


def _text(file: Path) -> str:
    """What a small file holds; nothing where it cannot be read."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""


def _load(file: Path) -> Program | None:
    """The program that was kept there; None where there is none, or none that is whole."""
    try:
        content = file.read_bytes()
        if hashlib.sha256(content[_CHECKSUM_BYTES:]).digest() != content[:_CHECKSUM_BYTES]:
            return None
        payload, in_tree, out_tree, peak = pickle.loads(content[_CHECKSUM_BYTES:])
        compiled = serialize_executable.deserialize_and_load(payload, in_tree, out_tree)
        os.utime(file)
    except (OSError, jax.errors.JaxRuntimeError):
        return None
    return Program(compiled, peak)


def _keep(file: Path, found: Program) -> None:
    """Keep the program for the next start, where the disk has room and the backend can write it."""
    with contextlib.suppress(UserError, ValueError, NotImplementedError):
        content = pickle.dumps((*serialize_executable.serialize(found.compiled), found.peak_bytes))
        write_whole(file, hashlib.sha256(content).digest() + content, durable=False)
    with contextlib.suppress(OSError):  # another process does the same
        for old in sorted(file.parent.glob("*.program"), key=lambda x: -x.stat().st_mtime)[_MOST:]:
            old.unlink()
        for name in [*file.parent.glob("*.name"), *file.parent.glob("*.run")]:
            if not all((name.parent / program).exists() for program in name.read_text().split()):
                name.unlink()


def of_config(config: Config) -> Config:
    """The configuration without what no program depends on."""
    return dataclasses.replace(config, log=LogConfig(), train=dataclasses.replace(config.train, seed=0))


def of_arrays(tree: Any) -> str:
    """Structure, shapes, types and places of the arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return f"{structure} {[(x.shape, str(x.dtype), str(getattr(x, 'sharding', ''))) for x in leaves]}"


def _digest(*made_of: Any) -> str:
    devices = [(d.id, d.platform, d.device_kind, d.client.platform_version) for d in jax.devices()]
    settings = {k: v for k, v in os.environ.items() if k.startswith(_SETTINGS) and k not in _ELSEWHERE}
    of_jax = {k: v for k, v in jax.config.values.items() if k != "jax_compilation_cache_dir"}
    parts = (
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
