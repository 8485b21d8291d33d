"""Inference on the CPU, batch 1: this library against transformers' model in PyTorch, eager and torch.compile.

    python benchmarks/inference_cpu.py --variant n --size 640
    python benchmarks/inference_cpu.py --variant rtdetrv2-r18 --size 640
    python benchmarks/inference_cpu.py --variant rfdetr-nano --size 384
    python benchmarks/inference_cpu.py --variant rfdetr-nano --size 384

Random weights (time does not depend on them). Both sides get a float32 tensor and return logits and boxes. Of ours,
"ahead of time" calls the compiled executable, and "cached" has been compiled before: its first run is tracing and
loading from the compilation cache, as in a program's second start.
"""

from __future__ import annotations

import argparse
import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import interleave, peers


def _jax(variant: str, size: int, how: str) -> Callable[[], object]:
    import jax
    import numpy as np

    from dfine_jax import families
    from dfine_jax.families.family import Build
    from dfine_jax.system.host_memory import keep_freed_memory

    keep_freed_memory()  # as the commands do
    config = peers.model_config(variant)
    family = families.of(config)
    model: Any = family.build(config, Build())
    variables = family.init(config, jax.random.key(0))
    forward = jax.jit(lambda v, x: (lambda o: (o.logits, o.boxes_cxcywh))(model.apply(v, x, train=False)))
    images = np.random.default_rng(0).random((1, size, size, 3), np.float32)
    if how == "ahead":
        forward = forward.lower(variables, images).compile()
    elif how == "cached":
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.block_until_ready(forward(variables, images))
        jax.clear_caches()
    return lambda: jax.block_until_ready(forward(variables, images))


def _torch(variant: str, size: int, mode: str) -> Callable[[], object]:
    import torch

    torch.set_num_threads(2)
    model = peers.transformers_model(peers.model_config(variant)).eval()
    images = torch.rand(1, 3, size, size)
    if mode == "channels_last":
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    call = torch.compile(model) if mode == "compile" else model

    def run() -> object:
        with torch.inference_mode():
            out = call(pixel_values=images)
            return out.logits, out.pred_boxes

    return run


SETUPS = {
    "dfine_jax (jit)": lambda v, s: _jax(v, s, "jit"),
    "dfine_jax (ahead of time)": lambda v, s: _jax(v, s, "ahead"),
    "dfine_jax (cached)": lambda v, s: _jax(v, s, "cached"),
    "transformers eager": lambda v, s: _torch(v, s, "eager"),
    "transformers channels_last": lambda v, s: _torch(v, s, "channels_last"),
    "transformers torch.compile": lambda v, s: _torch(v, s, "compile"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="n")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="contenders to run (default: all)")
    parser.add_argument("--worker")
    args = parser.parse_args()
    if args.worker:
        interleave.serve(lambda: SETUPS[args.worker](args.variant, args.size))
        return
    names = args.only or list(SETUPS)
    shared = ["--variant", args.variant, "--size", str(args.size)]
    interleave.compare(
        __file__,
        names,
        shared,
        args.rounds,
        args.runs,
        f"inference {args.variant.upper()} {args.size} px, batch 1, CPU",
    )


if __name__ == "__main__":
    main()
