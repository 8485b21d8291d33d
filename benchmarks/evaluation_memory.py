"""Time and peak memory of COCO's metrics, by the number of images; synthetic, 80 classes.

python benchmarks/evaluation_memory.py             1,000 and 5,000 images
python benchmarks/evaluation_memory.py 80000       as many as are named
python benchmarks/evaluation_memory.py --plain     also pycocotools fed with dictionaries, for comparison
python benchmarks/evaluation_memory.py --masks     100 objects each, too, and all with masks: outlines in the file, maps
                                                   of 160x160 in the detections, box and mask AP, counts
python benchmarks/evaluation_memory.py --detections 300   as many in each image as networks answer with, not 100

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
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from dfine_jax.data.load.batch import EvalBatch
    from dfine_jax.serving.backends.base import PixelPredictions

CLASSES, OBJECTS, BATCH, MAP = 80, 100, 8, 160
WIDTH, HEIGHT = 640, 480


def make(file: Path, images: int, objects: int, masks: bool) -> None:
    """Annotations in COCO JSON; masks are the ellipses in the boxes."""
    rng = np.random.default_rng(0)
    number = images * objects
    boxes = np.concatenate([rng.random((number, 2)) * [400, 300], rng.random((number, 2)) * 200 + 5], 1)
    angle = np.arange(20) * np.pi / 10
    circle = (1 + np.stack([np.cos(angle), np.sin(angle)], 1)) / 2
    annotations = [
        {
            "id": i + 1,
            "image_id": i // objects + 1,
            "category_id": int(c),
            "bbox": b,
            "area": b[2] * b[3],
            "iscrowd": int(x),
        }
        | ({"segmentation": [(circle * b[2:] + b[:2]).round(2).ravel().tolist()]} if masks else {})
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
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(images)],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)],
        "annotations": annotations,
    }
    file.write_text(json.dumps(content))


def detections(
    file: Path, objects: int, number: int, masks: bool, seed: int = 1
) -> Iterator[tuple[np.ndarray, PixelPredictions]]:
    """Batches of image ids and detections: objects moved a little, and as many false ones."""
    from dfine_jax.evaluation.truth import annotated
    from dfine_jax.serving.backends.base import PixelPredictions

    rng = np.random.default_rng(seed)
    truth = annotated(file)
    corners = truth.box_xywh_px.copy()
    corners[:, 2:] += corners[:, :2]
    corners, labels = corners.reshape(-1, objects, 4), truth.category_id.reshape(-1, objects) - 1
    for start in range(0, len(corners), BATCH):
        rows = np.arange(start, min(start + BATCH, len(corners)))
        pick = rng.integers(objects, size=(len(rows), number))
        right = rng.random(pick.shape) < 0.4
        moved = corners[rows[:, None], pick] + rng.normal(0, 6, (*pick.shape, 4))
        moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
        label = np.where(right, labels[rows[:, None], pick], rng.integers(CLASSES, size=pick.shape))
        scores, moved = rng.random(pick.shape).astype(np.float32), moved.astype(np.float32)
        yield rows + 1, PixelPredictions(scores, label, moved, ellipses(moved) if masks else None)


def ellipses(boxes: np.ndarray) -> np.ndarray:
    """Maps of the logits of masks, as networks give them to the host: 0 at the edge of the ellipse in each box."""
    centre, radius = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    places = [(np.arange(MAP, dtype=np.float32) + 0.5) * side / MAP for side in (WIDTH, HEIGHT)]
    x, y = (((p - centre[..., i : i + 1]) / radius[..., i : i + 1]) ** 2 for i, p in enumerate(places))
    return (3 - 3 * (x[..., None, :] + y[..., :, None])).clip(-60000, None).astype(np.float16)


def ours(file: Path, objects: int, number: int, masks: bool) -> list[float]:
    """As ``dfine evaluate`` does it, but for the network."""
    from dfine_jax.data.read.dataset import Classes
    from dfine_jax.evaluation.evaluate import ClassMatch, evaluate_detections

    classes = Classes(tuple(f"class {k}" for k in range(CLASSES)), tuple(range(1, CLASSES + 1)))
    latest = []

    def batches() -> Iterator[EvalBatch]:
        for ids, found in detections(file, objects, number, masks):
            latest[:] = [found]
            yield _batch(ids)

    metrics = evaluate_detections(lambda *_: latest[0], batches(), file, ClassMatch(classes, classes.ids))
    return [metrics.ap, metrics.masks.ap] if metrics.masks else [metrics.ap]


def _batch(ids: np.ndarray) -> EvalBatch:
    from dfine_jax.data.load.batch import EvalBatch

    size_px = np.tile(np.array([WIDTH, HEIGHT], np.float32), (len(ids), 1))
    return EvalBatch(np.zeros((len(ids), 1, 1, 3), np.uint8), ids, size_px)


def plain(file: Path, objects: int, number: int, masks: bool) -> list[float]:
    """pycocotools with one dictionary per detection."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from dfine_jax.evaluation.evaluate import pixel_results

    results, categories = [], range(1, CLASSES + 1)
    for ids, found in detections(file, objects, number, masks):
        results += list(pixel_results(found, _batch(ids), categories))
    aps = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO(str(file))
        kinds: list[tuple[Literal["bbox", "segm"], str]] = [("bbox", "segmentation"), ("segm", "bbox")]
        for kind, other in kinds[: 1 + masks]:
            run = COCOeval(truth, truth.loadRes([{k: v for k, v in r.items() if k != other} for r in results]), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            aps.append(float(run.stats[0]))
    return aps


def main() -> None:
    """Measure in fresh processes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=int, default=[1000, 5000])
    parser.add_argument("--plain", action="store_true", help="also pycocotools fed with dictionaries")
    parser.add_argument("--masks", action="store_true", help="100 objects each, and all with masks")
    parser.add_argument("--detections", type=int, default=100, help="of each image (default: 100)")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    objects = OBJECTS if args.masks else 7
    if args.measure:
        way, file = args.measure
        wall, processor = time.perf_counter(), time.process_time()
        ap = {"ours": ours, "plain": plain}[way](Path(file), objects, args.detections, args.masks)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        out = {"ap": ap, "peak": peak, "cpu": time.process_time() - processor, "wall": time.perf_counter() - wall}
        print(json.dumps(out | {"jax": "jax" in sys.modules}))
        return
    print(f"{'images':>7} {'detections':>11}  {'':<6} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9}  AP")
    with tempfile.TemporaryDirectory() as folder:
        for images in args.images:
            file = Path(folder) / f"{images}.json"
            make(file, images, objects, args.masks)
            for way in ("ours", "plain")[: 1 + args.plain]:
                command = [sys.executable, __file__, "--measure", way, str(file), *["--masks"] * args.masks]
                command += ["--detections", str(args.detections)]
                root = str(Path(__file__).resolve().parent.parent)
                environment = {**os.environ, "DFINE_CACHE": folder, "PYTHONPATH": root}
                answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if answer.returncode:
                    sys.exit(answer.stderr)
                found = json.loads(answer.stdout)
                aps = ", ".join(f"{ap:.12f}" for ap in found["ap"]) + "  (jax loaded)" * found["jax"]
                print(
                    f"{images:>7} {images * args.detections:>11}  {way:<6} {found['cpu']:>7.1f} {found['wall']:>7.1f} "
                    f"{found['peak']:>9.0f}  {aps}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
