"""From a network's coarse maps to the masks of a picture: this library against resizing every map to the picture.

    python benchmarks/mask_postprocess.py
    python benchmarks/mask_postprocess.py --size 4000x3000 --objects 300 --rounds 2

Maps are 160 x 160 (an input of 640 pixels), objects are ellipses with noisy edges. "resize" interpolates the
probability of one object after the other to the size of the picture in PyTorch, compares, and cuts at the box; "resize
and encode" makes run lengths of each with pycocotools. Ours: "run lengths" and "crops" of all objects, and "pixels",
each mask in the size of the picture. Masks of all objects at once are not kept by anybody: of 300 objects in 12
megapixels they are 3.6 GB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import interleave
from dfine_jax.data.picture.object_masks import MapMasks

CELLS = 160
NAMES = ("run lengths", "crops", "pixels", "resize", "resize and encode")


def made_masks(number: int, width: int, height: int) -> MapMasks:
    """Objects of 3 to 30 percent of the picture's sides."""
    rng = np.random.default_rng(0)
    centre, radius = rng.uniform(0.1, 0.9, (number, 2)), rng.uniform(0.015, 0.15, (number, 2))
    place = (np.arange(CELLS) + 0.5) / CELLS
    across, down = ((place - centre[:, i : i + 1]) / radius[:, i : i + 1] for i in range(2))
    maps = 6 * (1 - across[:, None] ** 2 - down[..., None] ** 2) + rng.normal(0, 0.5, (number, CELLS, CELLS))
    boxes = np.concatenate([centre - radius, centre + radius], 1) * [width, height, width, height]
    maps, boxes = maps.clip(-15, 15).astype(np.float32), boxes.astype(np.float32)
    return MapMasks(maps, boxes, (0, 0, width, height), (width, height))


def resized(masks: MapMasks, encode: bool) -> None:
    """Every map, one after the other."""
    import torch
    from pycocotools import mask as coco_mask

    width, height = masks.size_px
    for logits, box in zip(torch.from_numpy(masks.maps_logit), masks.boxes_xyxy_px, strict=True):
        probability = logits.sigmoid()[None, None]
        pixels = torch.nn.functional.interpolate(probability, (height, width), mode="bilinear", align_corners=False)
        mask = (pixels[0, 0] >= masks.threshold).numpy()
        x0, y0, x1, y1 = np.ceil(box.clip(0, [width, height] * 2)).astype(int)
        mask[:y0], mask[y1:], mask[:, :x0], mask[:, x1:] = False, False, False, False
        if encode:
            coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))


def setup(name: str, number: int, width: int, height: int) -> Callable[[], object]:
    masks = made_masks(number, width, height)
    if name.startswith("resize"):
        import torch

        torch.set_num_threads(2)
        return lambda: resized(masks, encode=name.endswith("encode"))
    one = {"run lengths": masks.rle, "crops": masks.crop, "pixels": masks.full}[name]

    def run() -> None:
        for i in range(number):
            one(i)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["640x480", "1920x1080", "4000x3000"], help="width x height")
    parser.add_argument("--objects", nargs="+", type=int, default=[20, 300])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        width, height = map(int, options.size[0].split("x"))
        interleave.serve(lambda: setup(options.worker, options.objects[0], width, height))
        return
    for size in options.size:
        for number in options.objects:
            arguments = ["--size", size, "--objects", str(number)]
            title = f"{number} objects in {size}"
            rows = interleave.compare(__file__, NAMES, arguments, options.rounds, 1, title)
            encoded = rows[-1]["median_ms"] / rows[0]["median_ms"]
            pixels = rows[3]["median_ms"] / rows[2]["median_ms"]
            print(f"run lengths {encoded:.0f} times as fast, pixels {pixels:.1f} times", flush=True)


if __name__ == "__main__":
    main()
