"""``dfine doctor``: what this machine offers, and what to install for the rest."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import metadata
from importlib.util import find_spec

from dfine_jax.system.host_memory import ALLOCATOR, allocator_name, with_allocator
from dfine_jax.system.installed import COMMAND, DISTRIBUTION, command, pip_install

CORE = ("numpy", "pillow", "jaxtyping", "tqdm")
# What a part is for -> its libraries: name of the import, of the distribution.
PARTS = {
    "onnx": ("running .onnx files", (("onnxruntime", "onnxruntime"),)),
    "eval": (
        "reading datasets, evaluate, benchmark, check, data",
        (("pycocotools", "pycocotools"), ("msgspec", "msgspec"), ("yaml", "pyyaml"), ("matplotlib", "matplotlib")),
    ),
    "train": (
        "checkpoints, train, convert, demo",
        (
            ("jax", "jax"), ("jaxlib", "jaxlib"), ("flax", "flax"), ("optax", "optax"),
            ("orbax.checkpoint", "orbax-checkpoint"), ("scipy", "scipy"), ("safetensors", "safetensors"),
        ),
    ),
    "export": ("writing .onnx files", (("jax2onnx", "jax2onnx"), ("onnx_ir", "onnx-ir"), ("onnx", "onnx"))),
    "cuda": ("NVIDIA GPU", (("jax_cuda13_plugin", "jax-cuda13-plugin"),)),
    "video": ("videos, streams, cameras", (("av", "av"),)),
    "track": ("predict --track, counts; to_supervision()", (("trackers", "trackers"), ("supervision", "supervision"))),
    "openvino": ("OpenVINO files, int8", (("openvino", "openvino"), ("nncf", "nncf"))),
    "tensorrt": ("TensorRT engines", (("tensorrt", "tensorrt-cu12"),)),
    "tensorrt-rtx": ("TensorRT-RTX engines", (("tensorrt_rtx", "tensorrt-rtx"),)),
    "serve": (
        "dfine serve",
        (("starlette", "starlette"), ("uvicorn", "uvicorn"), ("python_multipart", "python-multipart")),
    ),
    "tfds": ("data from tfds:NAME", (("tensorflow_datasets", "tensorflow-datasets"),)),
    "tensorboard": ("event files of runs", (("tensorboardX", "tensorboardX"),)),
    "wandb": ("Weights & Biases", (("wandb", "wandb"),)),
    "mlflow": ("MLflow", (("mlflow", "mlflow-skinny"),)),
    "docs": (
        "these pages as a site",
        (
            ("material", "mkdocs-material"), ("mkdocs_jupyter", "mkdocs-jupyter"),
            ("mkdocstrings_handlers.python", "mkdocstrings-python"),
        ),
    ),
    "parity": ("comparison tests only", (("torch", "torch"), ("transformers", "transformers"))),
    "dev": ("the test suite", (("pytest", "pytest"),)),
}  # fmt: skip
_ALONE = (("pandas", "to_pandas()"),)


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
    print(f"dfine-jax   {_version(DISTRIBUTION) or 'not installed, run from a source tree'}")
    print(f"python      {platform.python_version()} ({sys.executable})")
    print(f"machine     {platform.platform()}, {os.cpu_count()} cores")
    print(f"command     {_command()}")
    print("\nrequired: exported files can be run with these and a runtime")
    for name in CORE:
        version = _version(name)
        healthy &= version is not None
        print(f"  {name:20s}{version or f'MISSING: pip install {name}'}")
    if _found("jax") and _found("jaxlib"):
        healthy &= _print_devices()
    print("\nextras")
    for extra, (purpose, libraries) in PARTS.items():
        lacking = [module for module, _ in libraries if not _found(module)]
        print(f"  {extra}: {purpose}" + (f" ({pip_install(extra)})" if lacking else ""))
        for module, distribution in libraries:
            version = _version(distribution) if module not in lacking else None
            print(f"    {distribution:20s}{version or 'absent'}")
    for name, purpose in _ALONE:
        version = _version(name) if _found(name) else None
        print(f"  {name:22s}{version or 'absent':12s}{purpose}{'' if version else f' (pip install {name})'}")
    return 0 if healthy else 1


def _command() -> str:
    """Which ``dfine`` a shell starts, and whose it is: other packages have a command of this name."""
    found = command(COMMAND)
    if found is None:
        return "no dfine on PATH; python -m dfine_jax is the same"
    others = f"; packages here with the same command: {', '.join(found.others)}" if found.others else ""
    if found.module.startswith("dfine_jax."):
        if found.here:
            return f"dfine is {found.path}, of this package{others}"
        return f"dfine is {found.path}, of dfine-jax in another environment{others}; here call python -m dfine_jax"
    whose = f"of another program ({found.module})" if found.module else "of a program that is not known"
    return f"dfine is {found.path}, {whose}{others}; call dfine-jax or python -m dfine_jax"


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


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # the package around it is absent
        return False


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
