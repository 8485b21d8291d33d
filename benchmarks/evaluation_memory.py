"""Time and peak memory of COCO's metrics, by the number of images; synthetic, 100 detections each, 80 classes.

python benchmarks/evaluation_memory.py             1,000 and 5,000 images
python benchmarks/evaluation_memory.py 80000       as many as are named
python benchmarks/evaluation_memory.py --plain     also pycocotools fed with dictionaries, for comparison

Every measurement is a process of its own that reads the annotations, takes detections in batches and judges them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, DETECTIONS, OBJECTS, BATCH = 80, 100, 7, 8


def make(file: Path, images: int) -> None:
    """Annotations in COCO JSON."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate(
        [rng.random((images * OBJECTS, 2)) * [400, 300], rng.random((images * OBJECTS, 2)) * 200 + 5], 1
    )
    annotations = [
        {
            "id": i + 1,
            "image_id": i // OBJECTS + 1,
            "category_id": int(c),
            "bbox": b,
            "area": b[2] * b[3],
            "iscrowd": int(x),
        }
        for i, (b, c, x) in enumerate(
            zip(
                boxes.round(2).tolist(),
                rng.integers(1, CLASSES + 1, len(boxes)),
                rng.random(len(boxes)) < 0.01,
                strict=True,
            )
        )
    ]
    content = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(images)],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)],
        "annotations": annotations,
    }
    file.write_text(json.dumps(content))


def detections(file: Path, seed: int = 1) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches of (image ids, scores, labels, corners): objects moved a little, and as many false ones."""
    rng = np.random.default_rng(seed)
    from dfine_jax.evaluation.truth import annotated

    truth = annotated(file)
    corners = truth.box_xywh_px.copy()
    corners[:, 2:] += corners[:, :2]
    corners, labels = corners.reshape(-1, OBJECTS, 4), truth.category_id.reshape(-1, OBJECTS) - 1
    for start in range(0, len(corners), BATCH):
        rows = np.arange(start, min(start + BATCH, len(corners)))
        pick = rng.integers(OBJECTS, size=(len(rows), DETECTIONS))
        right = rng.random(pick.shape) < 0.4
        moved = corners[rows[:, None], pick] + rng.normal(0, 6, (*pick.shape, 4))
        moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
        label = np.where(right, labels[rows[:, None], pick], rng.integers(CLASSES, size=pick.shape))
        yield rows + 1, rng.random(pick.shape).astype(np.float32), label, moved.astype(np.float32)


def ours(file: Path) -> float:
    """As ``dfine evaluate`` does it, but for the network."""
    from dfine_jax.data.load.batch import EvalBatch
    from dfine_jax.data.read.dataset import Classes
    from dfine_jax.evaluation.evaluate import ClassMatch, evaluate_detections

    classes = Classes(tuple(f"class {k}" for k in range(CLASSES)), tuple(range(1, CLASSES + 1)))
    latest = []

    def batches() -> Iterator[EvalBatch]:
        for ids, *found in detections(file):
            latest[:] = found
            yield EvalBatch(np.zeros((len(ids), 1, 1, 3), np.uint8), ids, np.full((len(ids), 2), 640, np.float32))

    return evaluate_detections(lambda *_: tuple(latest), batches(), file, ClassMatch(classes, classes.ids)).ap


def plain(file: Path) -> float:
    """pycocotools with one dictionary per detection."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = []
    for ids, scores, labels, corners in detections(file):
        boxes = corners.astype(np.float64)
        boxes[..., 2:] -= boxes[..., :2]
        results += [
            {"image_id": int(i), "category_id": int(c) + 1, "bbox": b.tolist(), "score": float(s)}
            for i, row, kinds, where in zip(ids, scores, labels, boxes, strict=True)
            for s, c, b in zip(row, kinds, where, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO(str(file))
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0])


def main() -> None:
    """Measure in fresh processes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=int, default=[1000, 5000])
    parser.add_argument("--plain", action="store_true", help="also pycocotools fed with dictionaries")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        way, file = args.measure
        wall, processor = time.perf_counter(), time.process_time()
        ap = {"ours": ours, "plain": plain}[way](Path(file))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        out = {"ap": ap, "peak": peak, "cpu": time.process_time() - processor, "wall": time.perf_counter() - wall}
        print(json.dumps(out | {"jax": "jax" in sys.modules}))
        return
    print(f"{'images':>7} {'detections':>11}  {'':<6} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9}  AP")
    with tempfile.TemporaryDirectory() as folder:
        for images in args.images:
            file = Path(folder) / f"{images}.json"
            make(file, images)
            for way in ("ours", "plain")[: 1 + args.plain]:
                command = [sys.executable, __file__, "--measure", way, str(file)]
                root = str(Path(__file__).resolve().parent.parent)
                environment = {**os.environ, "DFINE_CACHE": folder, "PYTHONPATH": root}
                answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if answer.returncode:
                    sys.exit(answer.stderr)
                found = json.loads(answer.stdout)
                print(
                    f"{images:>7} {images * DETECTIONS:>11}  {way:<6} {found['cpu']:>7.1f} {found['wall']:>7.1f} "
                    f"{found['peak']:>9.0f}  {found['ap']:.12f}" + "  (jax loaded)" * found["jax"],
                    flush=True,
                )


if __name__ == "__main__":
    main()
