"""One training step on the CPU: this library against the same model of transformers in PyTorch.

    python benchmarks/train_step_cpu.py --variant n --size 320 --batch 8 --objects 10
    python benchmarks/train_step_cpu.py --only dfine_jax "dfine_jax masks"

A step is loss, backward, clip and AdamW. Random weights and images; ``--objects`` boxes per image. Both sides train in
float32 with 100 denoising queries. Ours also keeps the average of the weights, as the recipe asks; PyTorch's side does
not. Ours compiles in the process that is timed unless JAX_COMPILATION_CACHE_DIR names a folder: steps right after a
cold start are what users get first. It has the allocator that ``dfine train`` preloads; "dfine_jax system allocator" is
what a notebook has.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import interleave, peers
from dfine_jax.system.host_memory import with_allocator


def _targets(batch: int, objects: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size = rng.uniform(0.05, 0.4, (batch, objects, 2))
    centre = rng.uniform(size / 2, 1 - size / 2)
    return rng.integers(0, 80, (batch, objects)), np.concatenate([centre, size], -1).astype(np.float32)


def _jax(args: argparse.Namespace, assignment: str = "scipy", task: str = "detect") -> Callable[[], object]:
    import jax

    from dfine_jax import families
    from dfine_jax.data.load.batch import Batch
    from dfine_jax.system.host_memory import give_back_memory, keep_freed_memory
    from dfine_jax.training.step.optimizer import make_optimizer
    from dfine_jax.training.step.state import create_state
    from dfine_jax.training.step.step import make_train_step, replicated

    keep_freed_memory()  # as `dfine train` does
    config = peers.config(args.variant, loss={"assignment": assignment})
    family = families.of(config.model)
    config = dataclasses.replace(config, model=family.tasks[task](config.model))
    variables = family.init(config.model, jax.random.key(0))
    tx = make_optimizer(config.model, config.optim)
    step = make_train_step(config, tx)
    state = replicated(create_state(variables, tx, jax.random.key(1)))
    labels, boxes = _targets(args.batch, args.objects)
    images = np.random.default_rng(1).integers(0, 256, (args.batch, args.size, args.size, 3), np.uint8)
    batch = Batch(images, labels.astype(np.int32), boxes, np.ones(labels.shape, bool))
    if stride := family.mask_stride(config.model):
        cells = args.size // stride
        masks = np.random.default_rng(2).integers(0, 5, (*labels.shape, cells, cells), np.uint8)
        batch = batch._replace(masks=masks, has_mask=batch.valid)
    batch = batch.each(lambda array: array[None])
    compiled = step.lower(state, batch).compile()
    give_back_memory()

    def run() -> object:
        nonlocal state
        state, metrics = compiled(state, batch)
        return float(metrics.loss)

    return run


def _torch(args: argparse.Namespace, channels_last: bool) -> Callable[[], object]:
    import torch

    torch.set_num_threads(2)
    model = peers.transformers_model(peers.model_config(args.variant)).train()
    labels, boxes = _targets(args.batch, args.objects)
    targets = [{"class_labels": torch.tensor(c), "boxes": torch.tensor(b)} for c, b in zip(labels, boxes, strict=True)]
    images = torch.rand(args.batch, 3, args.size, args.size)
    if channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-4)

    def run() -> object:
        optimizer.zero_grad()
        loss = model(pixel_values=images, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return loss.item()

    return run


SETUPS = {
    "dfine_jax": _jax,
    "dfine_jax system allocator": _jax,
    "dfine_jax device matching": lambda args: _jax(args, "device"),
    "dfine_jax masks": lambda args: _jax(args, task="segment"),
    "transformers": lambda args: _torch(args, False),
    "transformers channels_last": lambda args: _torch(args, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="n")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="contenders to run (default: dfine_jax and transformers)")
    parser.add_argument("--worker")
    args = parser.parse_args()
    if args.worker:
        interleave.serve(lambda: SETUPS[args.worker](args))
        return
    names = args.only or ["dfine_jax", "transformers", "transformers channels_last"]
    shared = [f"--{key}={getattr(args, key)}" for key in ("variant", "size", "batch", "objects")]
    title = f"train step {args.variant.upper()} {args.size} px, batch {args.batch}, {args.objects} objects/image, CPU"
    preload = with_allocator({**os.environ, "JAX_PLATFORMS": "cpu"}) or {}
    environments = {name: preload for name in ("dfine_jax", "dfine_jax device matching", "dfine_jax masks")}
    interleave.compare(__file__, names, shared, args.rounds, args.runs, title, environments)


if __name__ == "__main__":
    main()
