"""Evaluation of made-up masks by one of several processes; run by test_hosts_masks.py.

Usage: hosts_masks.py COORDINATOR PROCESSES INDEX; prints JSON: the numbers, the images, the bytes that were sent.
"""

from __future__ import annotations

import json
import math
import sys

import numpy as np

from dfine_jax.data.load.batch import EvalBatch
from dfine_jax.data.read.dataset import Classes
from dfine_jax.evaluation.evaluate import evaluate
from dfine_jax.ops.postprocess import Selected
from dfine_jax.training.run import hosts

IMAGES, FOUND, MAP, SIDE_PX, BATCH = 10, 30, 40, 160, 2
CLASSES = Classes(("disc", "ring"), (2**40, 5))  # ids need all of their bits


def corners(seed):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 100, (FOUND, 2))
    return np.concatenate([start, start + rng.uniform(20, 60, (FOUND, 2))], 1)


def truth():
    """Octagons in boxes of which the detections are moved ones."""
    annotations = []
    for image in range(IMAGES):
        for label, (left, top, right, bottom) in enumerate(corners(image)[:6].tolist()):
            x, y, u, v = (right + left) / 2, (bottom + top) / 2, (right - left) / 2, (bottom - top) / 2
            turn = np.arange(8) * np.pi / 4
            points = np.stack([x + u * np.cos(turn), y + v * np.sin(turn)], 1).ravel().tolist()
            box = [left, top, right - left, bottom - top]
            kind = {"category_id": CLASSES.ids[label % 2], "iscrowd": 0, "area": box[2] * box[3]}
            annotations.append(
                {"id": len(annotations), "image_id": image, "bbox": box, "segmentation": [points], **kind}
            )
    images = [{"id": i, "file_name": f"{i}.png", "width": SIDE_PX, "height": SIDE_PX} for i in range(IMAGES)]
    categories = [{"id": i, "name": name} for i, name in zip(CLASSES.ids, CLASSES.names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def predict(images):
    """What is found in the pictures, whose numbers are in their pixels."""
    rows = [_found(int(image.flat[0])) for image in images]
    return Selected(*(np.stack(column) for column in zip(*rows, strict=True)))


def _found(image):
    rng = np.random.default_rng(100 + image)
    moved = corners(image) + rng.normal(0, 3, (FOUND, 4))
    centre, size = (moved[:, :2] + moved[:, 2:]) / 2, moved[:, 2:] - moved[:, :2]
    cells = (np.arange(MAP) + 0.5) * SIDE_PX / MAP
    dx, dy = ((cells - centre[:, i : i + 1]) / size[:, i : i + 1] * 2 for i in (0, 1))
    masks = 3 - 3 * (dx[:, None, :] ** 2 + dy[:, :, None] ** 2)
    boxes = (np.concatenate([centre, size], 1) / SIDE_PX).astype(np.float32)
    scores = np.sort(rng.random(FOUND).astype(np.float32))[::-1]
    return scores, (np.arange(FOUND) % 2).astype(np.int32), boxes, masks.astype(np.float16)


def batches(index, processes):
    """Of one host: every so many-th image, filled up to whole batches."""
    own = np.arange(index, IMAGES, processes)
    number = math.ceil(IMAGES / processes / BATCH) * BATCH
    ids = np.concatenate([own, np.full(number - len(own), -1)])
    for part in ids.reshape(-1, BATCH):
        sizes = np.where(part[:, None] < 0, 1, SIDE_PX).repeat(2, 1).astype(np.float32)
        yield EvalBatch(np.maximum(part, 0).astype(np.uint8).reshape(-1, 1, 1, 1).repeat(3, 3), part, sizes)


def main(coordinator, processes, index):
    sent, gathered = [], hosts._gathered

    def watched(data):
        sent.append(data.nbytes)
        return gathered(data)

    hosts._gathered = watched
    if processes > 1:
        hosts.join(coordinator, processes, index)
    observed = []
    metrics = evaluate(predict, batches(index, processes), truth(), CLASSES, observed.extend, hosts.together)
    segmented = sum("segmentation" in result for result in observed)
    out = {"numbers": metrics.to_dict(), "images": metrics.num_images, "sent": sum(sent), "segmented": segmented}
    print(json.dumps(out))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
