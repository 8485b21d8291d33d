"""Where the time of a training step goes: waiting for data, forward and backward, matching, optimiser and averages.

    python benchmarks/step_split.py --variant n --size 320 --batch 8 --objects 20 100

For each number of objects a dataset of random images is written and trained on, once with SciPy's assignment on the
host and once with the one on the device. Matching (cost matrices and assignment of all outputs of the step) and the
update of the state are timed as programs of their own, in turn with the step; forward and backward is the rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import peers
from dfine_jax import families
from dfine_jax.config import DataConfig, TrainConfig
from dfine_jax.families.family import Build
from dfine_jax.system.host_memory import keep_freed_memory

IMAGES, WIDTH_PX, HEIGHT_PX = 32, 640, 480


def write_dataset(folder: Path, objects: int) -> None:
    """Images with random contents and ``objects`` boxes each."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "train").mkdir()
    (folder / "annotations").mkdir()
    for index in range(1, IMAGES + 1):
        small = rng.integers(0, 256, (HEIGHT_PX // 16, WIDTH_PX // 16, 3), np.uint8)
        name = f"{index}.jpg"
        Image.fromarray(small).resize((WIDTH_PX, HEIGHT_PX)).save(folder / "train" / name)
        images.append({"id": index, "file_name": name, "width": WIDTH_PX, "height": HEIGHT_PX})
        size = rng.uniform(20, 120, (objects, 2))
        corner = rng.uniform(0, 1, (objects, 2)) * ((WIDTH_PX, HEIGHT_PX) - size)
        for box in np.concatenate([corner, size], 1).tolist():
            number = len(annotations) + 1
            shape = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": number, "image_id": index, "category_id": number % 80 + 1, **shape})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(80)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))


def split(args: argparse.Namespace, folder: Path, assignment: str) -> dict[str, float]:
    """Median milliseconds of each part over the rounds."""
    import jax

    from dfine_jax.data.load.pipeline import TrainLoader
    from dfine_jax.data.read.sources import read_dataset
    from dfine_jax.training.step.gradient import split_parts
    from dfine_jax.training.step.optimizer import make_optimizer
    from dfine_jax.training.step.state import create_state
    from dfine_jax.training.step.step import make_train_step, make_update, replicated, split_over_devices

    data = DataConfig(height_px=args.size, width_px=args.size, augment="none", workers=args.workers)
    config = peers.config(
        args.variant, loss={"assignment": assignment}, data=data, train=TrainConfig(batch_size=args.batch)
    )
    family = families.of(config.model)
    loader = TrainLoader(read_dataset(folder, "train"), data, batch_size=args.batch, seed=0, workers=args.workers)
    tx = make_optimizer(config.model, config.optim)
    state = replicated(create_state(family.init(config.model, jax.random.key(0)), tx, jax.random.key(1)))
    step = make_train_step(config, tx)
    batches = loader.batches()

    first = next(batches)
    part = jax.tree.map(lambda x: x[0], split_parts(first, jax.random.key(2), config, None, np.float32))
    network = family.build(config.model, Build())
    forward: Any = jax.jit(
        lambda variables, images, queries: network.apply(
            variables, images, queries, train=True, mutable=["batch_stats"]
        )[0]
    )
    output = forward({"params": state.params, "batch_stats": state.batch_stats}, part.images, part.queries)
    pairs = jax.jit(lambda output, part: family.match(output, part.targets, part.queries, config.loss).pairs)
    update = jax.jit(make_update(config, tx))
    state, _ = step(state, split_over_devices(first))  # from here on in vectors, as the update has it in a step
    grads = jax.tree.map(lambda p: 1e-3 * p, state.arrays.params)

    def timed(run: Any) -> float:
        started = time.perf_counter()
        jax.block_until_ready(run())
        return 1e3 * (time.perf_counter() - started)

    def one_step() -> Any:
        nonlocal state
        state, metrics = step(state, split_over_devices(batch))
        return state, metrics

    rows: dict[str, list[float]] = {"data wait": [], "step": [], "matching": [], "update": []}
    for turn in range(args.rounds + 1):
        started = time.perf_counter()
        batch = next(batches)
        row = {
            "data wait": 1e3 * (time.perf_counter() - started),
            "step": timed(one_step),
            "matching": timed(lambda: pairs(output, part)),
            "update": timed(lambda: update(state.arrays, np.float32(1), grads, state.arrays.batch_stats)),
        }
        if turn:  # the first compiles
            for name, value in row.items():
                rows[name].append(value)
    batches.close()  # type: ignore[attr-defined]
    jax.clear_caches()
    out = {name: statistics.median(values) for name, values in rows.items()}
    return out | {"forward, backward": out["step"] - out["matching"] - out["update"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="n")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--objects", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    keep_freed_memory()
    names = ("data wait", "forward, backward", "matching", "update", "step")
    print(f"{args.variant.upper()} {args.size} px, batch {args.batch}, median of {args.rounds} steps, ms")
    print(f"{'objects':>8s} {'assignment':>10s} " + " ".join(f"{name:>17s}" for name in names))
    for objects in args.objects:
        with tempfile.TemporaryDirectory() as temporary:
            write_dataset(Path(temporary), objects)
            for assignment in ("scipy", "device"):
                row = split(args, Path(temporary), assignment)
                cells = " ".join(f"{row[name]:17.1f}" for name in names)
                print(f"{objects:8d} {assignment:>10s} {cells}", flush=True)


if __name__ == "__main__":
    main()
