"""``.engine`` in TensorRT or TensorRT-RTX, on an NVIDIA GPU.

Inputs and outputs go through pinned host memory; from the second run of a shape on, copies and kernels are one CUDA
graph. Each shape has its own execution context, because a captured graph belongs to the shapes and addresses it was
captured with. Needs ``cuda-bindings``, not torch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import threading
import weakref
from typing import Any

import numpy as np

from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import from_json, missing, sidecar
from dfine_jax.system.files import sha256
from dfine_jax.system.installed import require

PACKAGES = ("tensorrt", "tensorrt_rtx")
ENGINE = "engine"  # entry of the description that says what built the engine


class TensorRtSession:
    """One engine.

    Args:
      path: the engine; its description lies beside it (``<engine>.json``).
      device: None or ``cuda`` for the first GPU, ``cuda:1`` for the second.

    Raises:
      UserError: packages, GPU or description absent, the file was changed, or the engine is of another TensorRT
        version or GPU.
    """

    def __init__(self, path: str | os.PathLike[str], device: str | None = None) -> None:
        description = sidecar(path)
        if not description.is_file():
            raise missing(f"{path} ({description.name} is not beside it)")
        text = description.read_text()
        self.artefact = from_json(text, description)
        built = json.loads(text).get(ENGINE, {})
        if built.get("sha256") != sha256(path):
            raise UserError(f"{path} is not the engine that {description.name} describes; build it again")
        self._trt, self._cuda = _packages(path, built.get("runtime", "tensorrt"))
        self._device = device or "cuda"
        _check(self._cuda, self._cuda.cudaSetDevice(_index(self._device)))
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        self._engine = _engine(self._trt, self._runtime, path, built)
        (self._stream,) = _check(self._cuda, self._cuda.cudaStreamCreate())
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        mode = self._trt.TensorIOMode.INPUT
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == mode]
        self._outputs = [name for name in names if name not in self._inputs]
        self.input_dtypes = {name: self._dtype(name) for name in self._inputs}
        profile = built.get("profile", {}).get(self.artefact.input.name)
        self.max_batch = profile[2][0] if profile else None
        self._plans: dict[tuple[tuple[int, ...], ...], _Plan] = {}
        self._lock = threading.Lock()
        self._held: list[int] = []  # device and pinned host memory, alternating
        weakref.finalize(self, _free, self._cuda, self._held)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As ``Session.run``.

        Raises:
          UserError: a batch outside the profile the engine was built for.
        """
        with self._lock:  # memory and captured graphs serve one run at a time
            # Which GPU is meant is a property of the thread.
            _check(self._cuda, self._cuda.cudaSetDevice(_index(self._device)))
            return self._run(feeds)

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        key = tuple(feeds[name].shape for name in self._inputs)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(dict(zip(self._inputs, key, strict=True)))
        for name in self._inputs:
            np.copyto(plan.host[name], feeds[name])
        if plan.graph is None:
            self._enqueue(plan)
        else:
            _check(self._cuda, self._cuda.cudaGraphLaunch(plan.graph, self._stream))
        _check(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))
        if plan.graph is None and plan.capture:
            plan.graph, plan.capture = self._captured(plan), False
        return {name: plan.host[name].copy() for name in self._outputs}

    def describe(self) -> dict[str, Any]:
        """As ``Session.describe``."""
        (properties,) = _check(self._cuda, self._cuda.cudaGetDeviceProperties(_index(self._device)))
        name = bytes(properties.name).split(b"\0")[0].decode()
        return {"runtime": self._trt.__name__, "version": self._trt.__version__, "device": name}

    def _plan(self, shapes: dict[str, tuple[int, ...]]) -> _Plan:
        """Context and memory for inputs of these shapes."""
        own_graphs = hasattr(self._trt, "CudaGraphStrategy")  # TensorRT-RTX captures by itself
        if own_graphs:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise UserError("the GPU has no memory left for the engine; free some, or use smaller batches")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                least, _, most = (tuple(s) for s in self._engine.get_tensor_profile_shape(name, 0))
                raise UserError(f"input {name} {shape}: the engine was built for {least} to {most}; build it again")
        plan = _Plan(context, {}, {}, capture=not own_graphs)
        for name in [*self._inputs, *self._outputs]:
            shape, dtype = tuple(context.get_tensor_shape(name)), self._dtype(name)
            size = int(np.prod(shape)) * dtype.itemsize
            (on_device,) = _check(self._cuda, self._cuda.cudaMalloc(size))
            (on_host,) = _check(self._cuda, self._cuda.cudaMallocHost(size))
            self._held += [int(on_device), int(on_host)]
            memory: Any = (ctypes.c_uint8 * size).from_address(int(on_host))
            plan.host[name] = np.frombuffer(memory, dtype).reshape(shape)
            plan.device[name] = int(on_device)
            context.set_tensor_address(name, int(on_device))
        return plan

    def _enqueue(self, plan: _Plan) -> None:
        for name in self._inputs:
            host = plan.host[name]
            self._copy(plan.device[name], host.ctypes.data, host.nbytes, "cudaMemcpyHostToDevice")
        if not plan.context.execute_async_v3(int(self._stream)):
            raise UserError("TensorRT could not run the engine; its message is above")
        for name in self._outputs:
            host = plan.host[name]
            self._copy(host.ctypes.data, plan.device[name], host.nbytes, "cudaMemcpyDeviceToHost")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        direction = getattr(self._cuda.cudaMemcpyKind, kind)
        _check(self._cuda, self._cuda.cudaMemcpyAsync(target, source, size, direction, self._stream))

    def _captured(self, plan: _Plan) -> Any:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _check(self._cuda, self._cuda.cudaStreamBeginCapture(self._stream, mode))
        self._enqueue(plan)
        (graph,) = _check(self._cuda, self._cuda.cudaStreamEndCapture(self._stream))
        return _check(self._cuda, self._cuda.cudaGraphInstantiate(graph, 0))[0]

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))


@dataclasses.dataclass
class _Plan:
    """What one combination of input shapes needs."""

    context: Any
    host: dict[str, np.ndarray]
    device: dict[str, int]
    capture: bool  # make a CUDA graph after the first run
    graph: Any = None


def import_tensorrt(module: str) -> Any:
    """``tensorrt`` or ``tensorrt_rtx``.

    Raises:
      UserError: not installed.
    """
    return require(module, "an engine")


def require_gpu(module: str) -> None:
    """UserError unless engines of a package can run here."""
    _, cuda = _packages("an engine", module)
    _check(cuda, cuda.cudaSetDevice(0))


def _packages(path: str | os.PathLike[str], module: str) -> tuple[Any, Any]:
    if module not in PACKAGES:
        raise UserError(f"{path} was built by {module!r}, which is none of {', '.join(PACKAGES)}")
    trt = import_tensorrt(module)
    return trt, require("cuda.bindings.runtime", os.fspath(path), module.replace("_", "-"))


def _engine(trt: Any, runtime: Any, path: str | os.PathLike[str], built: dict[str, Any]) -> Any:
    with open(path, "rb") as file:
        engine = runtime.deserialize_cuda_engine(file.read())
    if engine is None:
        raise UserError(
            f"{path} was built by {built.get('runtime')} {built.get('version')} for {built.get('device')}; this is "
            f"{trt.__name__} {trt.__version__}, and engines fit one version and kind of GPU: build it again here"
        )
    return engine


def _index(device: str) -> int:
    name, _, number = device.partition(":")
    if name != "cuda" or (number and not number.isdigit()):
        raise UserError(f"device {device!r}: TensorRT runs on cuda or cuda:N")
    return int(number or 0)


def _check(cuda: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of the CUDA runtime returned after its status."""
    status, *values = answer
    if status != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(status)
        raise UserError(f"CUDA: {bytes(text).decode()}; dfine doctor shows driver and devices")
    return tuple(values)


def _free(cuda: Any, held: list[int]) -> None:
    for on_device, on_host in zip(held[::2], held[1::2], strict=True):
        cuda.cudaFree(on_device)
        cuda.cudaFreeHost(on_host)
