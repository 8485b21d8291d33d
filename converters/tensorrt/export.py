"""ONNX to an engine of TensorRT (10.x, 11.x) or TensorRT-RTX, with one builder for all of them.

Only strong typing is used, the one mode that exists in every version: a graph computes in the types it is written in,
so fp16 comes from an fp16 ONNX file with its float32 islands, never from a builder flag. TF32 is off; it roughly
doubles the box error. TensorRT-RTX builds without a GPU, TensorRT needs the GPU the engine is for.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import KEY, SIZES_INPUT, Artefact, from_json, missing, sidecar
from dfine_jax.serving.backends.tensorrt import ENGINE, PACKAGES, import_tensorrt
from dfine_jax.system.files import sha256, write_whole

logger = logging.getLogger(__name__)

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class EngineBuilder:
    """Builds engines with one package and one set of options.

    Args:
      package: ``tensorrt`` or ``tensorrt_rtx``.
      batches: smallest, best and largest batch of the profile, for ONNX files of any batch.
      timing_cache: file that keeps measured kernel times between builds; made when absent, ignored by other versions
        and GPUs. TensorRT only.
      optimization_level: 0 to 5; 5 was seen to choose worse kernels for this network than 3.
      workspace_gib: largest scratch memory of a kernel.
      compute_capabilities: of TensorRT-RTX, such as ``SM89``; empty: all it supports.
    """

    package: str = "tensorrt"
    batches: tuple[int, int, int] = (1, 1, 8)
    timing_cache: Path | None = None
    optimization_level: int = 3
    workspace_gib: float = 4.0
    compute_capabilities: tuple[str, ...] = ()

    def build(self, onnx_file: Path | str, engine_file: Path | str) -> Path:
        """Write the engine, and its description beside it; returns the engine's path.

        Raises:
          UserError: package absent, options out of range, no description in the ONNX file, int8 (which needs
            quantisation nodes in the graph), or TensorRT refuses the graph; the message has its reason.
        """
        self.check()
        onnx_file, engine_file = Path(onnx_file), Path(engine_file)
        artefact, content = _read(onnx_file)
        if artefact.precision == "int8":
            raise UserError(f"{onnx_file} is int8; TensorRT engines are built from fp32 and fp16 files")
        trt = import_tensorrt(self.package)
        log = _collecting_logger(trt)
        builder = _try(lambda: trt.Builder(log), log, "TensorRT cannot start here (TensorRT needs a GPU to build)")
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(content):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            reasons = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors]
            raise UserError(
                f"{onnx_file}: {self.package} {trt.__version__} cannot read it ({'; '.join(reasons)[:400]})"
            )
        config = self._config(trt, builder)
        profile = self._profile(builder, config, network, artefact)
        cache = self._open_cache(config)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise UserError(f"{onnx_file}: {self.package} {trt.__version__} built no engine ({log.last_error})")
        engine_file.write_bytes(engine)
        if cache is not None and self.timing_cache is not None:
            write_whole(self.timing_cache, bytes(cache.serialize()))
        built = {
            "runtime": self.package,
            "version": trt.__version__,
            "sha256": sha256(engine_file),
            "onnx": {"file": onnx_file.name, "sha256": sha256(onnx_file)},
            "device": self._target(),
            "profile": profile,
            "strongly_typed": True,
            "tf32": False,
            "optimization_level": self.optimization_level,
            "layers": network.num_layers,
        }
        sidecar(engine_file).write_text(json.dumps({**artefact.to_dict(), ENGINE: built}, indent=2) + "\n")
        return engine_file

    def check(self) -> None:
        """UserError unless the options are in range and fit together."""
        if self.package not in PACKAGES:
            raise UserError(f"package {self.package!r} is none of {', '.join(PACKAGES)}")
        least, best, most = self.batches
        if not 1 <= least <= best <= most:
            raise UserError(f"batches {self.batches} must rise from at least 1: smallest, best, largest")
        if not 0 <= self.optimization_level <= 5:
            raise UserError(f"optimization level {self.optimization_level} must lie between 0 and 5")
        if self.timing_cache is not None and self.package == "tensorrt_rtx":
            raise UserError("TensorRT-RTX times kernels where the engine runs; it has no timing cache, leave it out")
        if self.timing_cache is not None and not self.timing_cache.absolute().parent.is_dir():
            raise UserError(f"timing cache {self.timing_cache}: folder {self.timing_cache.parent} does not exist")

    def _config(self, trt: Any, builder: Any) -> Any:
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        config.builder_optimization_level = self.optimization_level
        config.max_aux_streams = 0  # one stream can be captured as a CUDA graph
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(self.workspace_gib * _GIB))
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # no allocation while a graph is captured
        if self.compute_capabilities:
            if not hasattr(trt, "ComputeCapability"):
                raise UserError(f"{self.package} builds for the GPU that is there; leave compute capabilities out")
            known = trt.ComputeCapability.__members__
            unknown = [name for name in self.compute_capabilities if name not in known]
            if unknown:
                raise UserError(f"compute capability {unknown[0]!r} is none of {', '.join(known)}")
            config.num_compute_capabilities = len(self.compute_capabilities)
            for i, name in enumerate(self.compute_capabilities):
                config.set_compute_capability(known[name], i)
        return config

    def _profile(self, builder: Any, config: Any, network: Any, artefact: Artefact) -> dict[str, list[list[int]]]:
        """Shapes the engine accepts: smallest, best and largest of each input; empty for a fixed batch."""
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        if all(-1 not in tuple(tensor.shape) for tensor in inputs):
            return {}
        if self.batches[0] == self.batches[2]:
            raise UserError(f"a profile of one batch only; export the ONNX file with --batch {self.batches[0]} instead")
        profile = builder.create_optimization_profile()
        shapes = {}
        for tensor in inputs:
            rest = [2] if tensor.name == SIZES_INPUT else list(artefact.input.shape(1)[1:])
            shapes[tensor.name] = [[batch, *rest] for batch in self.batches]
            profile.set_shape(tensor.name, *(tuple(shape) for shape in shapes[tensor.name]))
        if config.add_optimization_profile(profile) < 0:
            raise UserError(f"{self.package} does not accept the batches {self.batches}")
        return shapes

    def _open_cache(self, config: Any) -> Any:
        if self.timing_cache is None:
            return None
        stored = self.timing_cache.read_bytes() if self.timing_cache.is_file() else b""
        cache = config.create_timing_cache(stored)
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            logger.warning("%s is of another version or GPU and starts anew", self.timing_cache)
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        return cache

    def _target(self) -> str:
        if self.package == "tensorrt_rtx":
            return ", ".join(self.compute_capabilities) or "any supported"
        try:
            from cuda.bindings import runtime as cuda  # pyright: ignore[reportAttributeAccessIssue]
        except ImportError:
            return "the GPU it was built on"
        status, properties = cuda.cudaGetDeviceProperties(0)
        if status != cuda.cudaError_t.cudaSuccess:
            return "the GPU it was built on"
        name = bytes(properties.name).split(b"\0")[0].decode()
        return f"{name} (SM{properties.major}{properties.minor})"


def _read(onnx_file: Path) -> tuple[Artefact, bytes]:
    import onnx

    if not onnx_file.is_file():
        raise UserError(f"{onnx_file} does not exist")
    content = onnx_file.read_bytes()
    stored = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    if KEY not in stored:
        raise missing(onnx_file)
    return from_json(stored[KEY], onnx_file), content


def _strongly_typed(trt: Any) -> int:
    """Flags of a network; TensorRT 10 needs to be told what is the only mode of TensorRT 11."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _collecting_logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Warnings to logging; remembers the last error, which calls do not return."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = " ".join(message.split())[:400]
            level = logging.DEBUG if severity in (trt.ILogger.INFO, trt.ILogger.VERBOSE) else logging.WARNING
            logger.log(level, "%s: %s", trt.__name__, message)

    return Log()


def _try(make: Any, log: Any, problem: str) -> Any:
    try:
        made = make()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{problem}: {log.last_error}") from error
    if made is None:
        raise UserError(f"{problem}: {log.last_error}")
    return made
