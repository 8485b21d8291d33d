"""Training images per second and core: this library's pipeline against the same operations one by one.

    python benchmarks/data_pipeline.py --data DIR --size 640 --augment standard

One process and one thread each, from JPEG files to a batch. ``pillow`` runs the reference's list of operations on
Pillow images as torchvision v2 does, with none of torchvision's own overhead, and ends in float32 planes;
``torchvision`` is torchvision itself, where it is installed. Ours ends in bytes: the device divides by 255. The same
images, other random numbers. ``--masks 4`` adds ours with masks at a quarter of the size. With fields of the data's
configuration (``mosaic_layout=random_centre``), which the others do not know, ours is alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import interleave
from dfine_jax.config import DataConfig
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.system.config_values import override

BATCH = 8


def _config(args: argparse.Namespace) -> DataConfig:
    base = DataConfig(height_px=args.size, width_px=args.size, augment=args.augment, mosaic_cache=args.cache)
    base = dataclasses.replace(base, mixup_prob=0.0, start_augment_epoch=0, stop_mosaic_epoch=10**6)
    return override(base, args.fields)


def _ours(args: argparse.Namespace, mask_stride: int | None = None) -> Callable[[], object]:
    from dfine_jax.data.load.pipeline import TrainLoader

    data = read_dataset(args.data, "train")
    run = {"batch_size": BATCH, "seed": 0, "workers": 0, "epochs": 20, "mask_stride": mask_stride}
    loader = TrainLoader(data, _config(args), **run)
    batches = loader.batches()
    return lambda: next(batches)


class Plain:
    """Op by op on Pillow images."""

    def __init__(self, args: argparse.Namespace, seed: int = 0) -> None:
        self.records = read_dataset(args.data, "train").records
        self.size, self.mosaic = args.size, args.augment == "dense"
        self.rng = np.random.default_rng(seed)
        self.order: list[int] = []

    def batch(self) -> tuple[np.ndarray, list[Any]]:
        """Images float32 [b, 3, h, w] and boxes with labels."""
        images, targets = [], []
        for _ in range(BATCH):
            if not self.order:
                self.order = self.rng.permutation(len(self.records)).tolist()
            image, boxes, labels = self.augmented(self.order.pop())
            planes = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
            images.append(planes.astype(np.float32) / 255)
            targets.append((boxes, labels))
        return np.stack(images), targets

    def load(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        record = self.records[index]
        return Image.open(record.path).convert("RGB"), record.boxes_xyxy_px.copy(), record.labels

    def augmented(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        rng, is_mosaic = self.rng, self.mosaic and self.rng.random() < 0.5
        image, boxes, labels = self.mosaic_of(index) if is_mosaic else self.load(index)
        image = self.photometric(image)
        if not is_mosaic:
            if rng.random() < 0.5:
                image, boxes = self.zoom_out(image, boxes)
            if rng.random() < 0.8:
                image, boxes, labels = self.iou_crop(image, boxes, labels)
        boxes, labels = sanitize(image, boxes, labels)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = np.stack([image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], 1)
        scale = np.array([self.size / image.width, self.size / image.height] * 2, np.float32)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        boxes, labels = sanitize(image, boxes * scale, labels)
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        return image, np.concatenate([centre, size], 1) / self.size, labels

    def photometric(self, image: Image.Image) -> Image.Image:
        rng, chosen = self.rng, self.rng.random(5) < 0.5
        contrast_first = rng.random() < 0.5
        if chosen[0]:
            image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.875, 1.125))
        if chosen[1] and contrast_first:
            image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.5, 1.5))
        if chosen[2]:
            image = ImageEnhance.Color(image).enhance(rng.uniform(0.5, 1.5))
        if chosen[3]:
            hue, saturation, value = image.convert("HSV").split()
            turned = np.asarray(hue) + np.uint8(int(rng.uniform(-0.05, 0.05) * 255) % 256)
            image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
        if chosen[1] and not contrast_first:
            image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.5, 1.5))
        if chosen[4]:
            image = Image.fromarray(np.asarray(image)[..., rng.permutation(3)])
        return image

    def zoom_out(self, image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        ratio = self.rng.uniform(1, 4)
        width, height = int(image.width * ratio), int(image.height * ratio)
        left, top = (int(room * self.rng.random()) for room in (width - image.width, height - image.height))
        border = (left, top, width - image.width - left, height - image.height - top)
        return ImageOps.expand(image, border), boxes + np.array([left, top] * 2, np.float32)

    def iou_crop(self, image: Image.Image, boxes: np.ndarray, labels: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        rng = self.rng
        while True:
            overlap = rng.choice([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
            if overlap >= 1:
                return image, boxes, labels
            for _ in range(40):
                width, height = (int(side * (0.3 + 0.7 * rng.random())) for side in image.size)
                if not 0.5 <= width / height <= 2:
                    continue
                left, top = int((image.width - width) * rng.random()), int((image.height - height) * rng.random())
                crop = np.array([left, top, left + width, top + height], np.float32)
                centre = (boxes[:, :2] + boxes[:, 2:]) / 2
                inside = ((centre > crop[:2]) & (centre < crop[2:])).all(1)
                if not inside.any() or iou(boxes[inside], crop).max() < overlap:
                    continue
                boxes = (boxes - np.tile(crop[:2], 2)).clip(0, [width, height] * 2)
                boxes[~inside] = 0
                return image.crop((left, top, left + width, top + height)), boxes.astype(np.float32), labels

    def mosaic_of(self, index: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        rng, tiles = self.rng, []
        for i in (index, *rng.integers(len(self.records), size=3)):
            image, boxes, labels = self.load(i)
            scale = self.size // 2 / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
            tiles.append((image, boxes * np.float32(scale), labels))
        width, height = (max(image.size[axis] for image, *_ in tiles) for axis in (0, 1))
        canvas = Image.new("RGB", (2 * width, 2 * height))
        corners = [(0, 0), (width, 0), (0, height), (width, height)]
        for (image, *_), corner in zip(tiles, corners, strict=True):
            canvas.paste(image, corner)
        boxes = np.concatenate([b + np.array(c * 2, np.float32) for (_, b, _), c in zip(tiles, corners, strict=True)])
        angle, scale = np.radians(rng.uniform(-10, 10)), rng.uniform(0.5, 1.5)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = np.array(canvas.size) / 2
        shift = middle - turn @ middle + (rng.uniform(-0.1, 0.1, 2) * canvas.size).round()
        inverse = np.linalg.inv(turn)
        matrix = np.concatenate([inverse, (-inverse @ shift)[:, None]], 1)
        canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, tuple(matrix.ravel()))
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ turn.T + shift
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1).clip(0, np.tile(canvas.size, 2))
        return canvas, boxes.astype(np.float32), np.concatenate([labels for *_, labels in tiles])


def sanitize(image: Image.Image, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = boxes[:, 2:] - boxes[:, :2]
    keep = (size >= 1).all(1) & (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] <= image.size).all(1)
    return boxes[keep], labels[keep]


def iou(boxes: np.ndarray, crop: np.ndarray) -> np.ndarray:
    low, high = np.maximum(boxes[:, :2], crop[:2]), np.minimum(boxes[:, 2:], crop[2:])
    common = (high - low).clip(0).prod(1)
    return common / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (crop[2:] - crop[:2]).prod() - common)


def _torchvision(args: argparse.Namespace) -> Callable[[], object]:
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    class Sometimes(v2.RandomIoUCrop):
        def __call__(self, *inputs: Any) -> Any:
            return super().__call__(*inputs) if torch.rand(1) < 0.8 else inputs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = [v2.RandomPhotometricDistort(p=0.5), v2.RandomZoomOut(fill=0), Sometimes(), v2.SanitizeBoundingBoxes()]
    steps += [v2.RandomHorizontalFlip(), v2.Resize([args.size] * 2), v2.SanitizeBoundingBoxes()]
    pipeline = v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    records, order = read_dataset(args.data, "train").records, []
    rng = np.random.default_rng(0)

    def run() -> object:
        images = []
        for _ in range(BATCH):
            if not order:
                order.extend(rng.permutation(len(records)).tolist())
            record = records[order.pop()]
            size = (record.height_px, record.width_px)
            boxes = tv_tensors.BoundingBoxes(torch.tensor(record.boxes_xyxy_px), format="XYXY", canvas_size=size)
            target = {"boxes": boxes, "labels": torch.tensor(record.labels)}
            image, target = pipeline(Image.open(record.path).convert("RGB"), target)
            images.append(image[None])
        return torch.cat(images)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", metavar="field=value", nargs="*", help="of the data's configuration; ours alone")
    parser.add_argument("--data", required=True, help="dataset with JPEG files")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--augment", choices=("standard", "dense", "none"), default="standard")
    parser.add_argument("--cache", type=int, default=0, help="data.mosaic_cache, ours only")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=4, help=f"batches of {BATCH} images in a round")
    parser.add_argument("--torchvision", action="store_true", help="also torchvision itself (D-FINE's list)")
    parser.add_argument("--masks", type=int, default=0, metavar="STRIDE", help="also ours with masks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})  # of the workers
    if args.worker:
        setups = {"dfine_jax": _ours, "pillow": lambda a: Plain(a).batch, "torchvision": _torchvision}
        setups["masks"] = lambda a: _ours(a, a.masks)
        interleave.serve(lambda: setups[args.worker](args))
        return
    names = [*([] if args.fields else ["pillow"]), "dfine_jax"]
    names += ["torchvision"] * args.torchvision + ["masks"] * bool(args.masks)
    passed = ["--data", args.data, "--size", str(args.size), "--augment", args.augment, "--cache", str(args.cache)]
    passed += ["--masks", str(args.masks), *args.fields]
    title = f"{args.data}, {args.size} px, augment={args.augment}, batches of {BATCH}, one core"
    rows = interleave.compare(__file__, names, passed, args.rounds, args.runs, title)
    for row in rows:
        row["images_per_s"] = 1e3 * BATCH / row["median_ms"]
        share = row["ratio_first_over_this"]
        print(f"{row['contender']}: {row['images_per_s']:.1f} images/s, {share:.2f} of {names[0]}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
