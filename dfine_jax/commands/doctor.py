"""``dfine doctor``: what this machine offers, and what to install for the rest."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import metadata
from importlib.util import find_spec

from dfine_jax.system.host_memory import ALLOCATOR, allocator_name, with_allocator

CORE = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "pillow", "pycocotools", "safetensors")
OPTIONAL = (
    # import name, distribution, what it is for, how to get it
    ("jax_cuda13_plugin", "jax-cuda13-plugin", "NVIDIA GPU", "pip install 'dfine-jax[cuda]'"),
    ("tensorflow_datasets", "tensorflow-datasets", "data from tfds:NAME", "pip install 'dfine-jax[tfds]'"),
    ("av", "av", "dfine predict on videos", "pip install 'dfine-jax[video]'"),
    ("onnxruntime", "onnxruntime", "running .onnx files", "pip install onnxruntime"),
    ("openvino", "openvino", "OpenVINO files", "pip install 'dfine-jax[openvino]'"),
    ("nncf", "nncf", "int8 for OpenVINO", "pip install 'dfine-jax[openvino]'"),
    ("tensorrt", "tensorrt-cu12", "TensorRT engines", "pip install 'dfine-jax[tensorrt]'"),
    ("tensorrt_rtx", "tensorrt-rtx", "TensorRT-RTX engines", "pip install 'dfine-jax[tensorrt-rtx]'"),
    ("supervision", "supervision", "Detections.to_supervision()", "pip install supervision"),
    ("torch", "torch", "comparison tests only", "pip install 'dfine-jax[parity]'"),
    ("transformers", "transformers", "comparison tests only", "pip install 'dfine-jax[parity]'"),
    ("pytest", "pytest", "the test suite", "pip install 'dfine-jax[dev]'"),
)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``doctor`` to the command line."""
    subparsers.add_parser(
        "doctor",
        help="versions, devices and optional parts",
        description="Versions, devices and optional parts: what is here, and how to install what is not.",
        epilog="example:\n  dfine doctor",
    )


def run(options: argparse.Namespace) -> int:
    """Print the report. The status is 1 when a required package is missing or JAX finds no device."""
    del options
    healthy = True
    print(f"dfine-jax   {_version('dfine-jax') or 'not installed, run from a source tree'}")
    print(f"python      {platform.python_version()} ({sys.executable})")
    print(f"machine     {platform.platform()}, {os.cpu_count()} cores")
    print("\nrequired")
    for name in CORE:
        version = _version(name)
        healthy &= version is not None
        print(f"  {name:20s}{version or f'MISSING: pip install {name}'}")
    if find_spec("jax") and find_spec("jaxlib"):
        healthy &= _print_devices()
    print("\noptional")
    for module, distribution, purpose, cure in OPTIONAL:
        version = _version(distribution) if find_spec(module) else None
        print(f"  {distribution:20s}{version or 'absent':12s}{purpose}{'' if version else f' ({cure})'}")
    return 0 if healthy else 1


def _print_devices() -> bool:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        print(f"\ndevices\n  NONE: {error}")
        return False
    print(f"\ndevices (backend {jax.default_backend()})")
    for device in devices:
        print(f"  {device.id}: {device.device_kind}")
    _print_allocator()
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    print(f"  compiled programs are kept in {cache or 'no folder (JAX_COMPILATION_CACHE_DIR is empty)'}")
    return True


def _print_allocator() -> None:
    preloaded = with_allocator(os.environ)
    if preloaded:
        print(f"  train, evaluate, check, demo preload an allocator, LD_PRELOAD={preloaded['LD_PRELOAD']}")
        print(f"  ({ALLOCATOR}=system: they do not)")
    else:
        print(f"  memory is the allocator's {allocator_name()}")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
