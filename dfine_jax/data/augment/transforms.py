"""Training augmentations of the reference: pure functions ``f(rng, sample) -> sample`` with its exact distributions.

The reference (configs/dfine/include/dataloader.yml) runs torchvision v2 on Pillow images. Pixels are lazy here: a
sample is an untouched image, a window onto it and a distortion. Zooming out enlarges the window, cropping shrinks it,
and ``resize`` renders it, so that no large canvas is painted and only visible pixels are distorted. What lies outside
the image is black and is not computed. Pixels equal those of the op-by-op pipeline; only where Pillow orders its two
passes otherwise for the computed part than for the whole, bytes may differ by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageEnhance

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.augment.colour import adjust_brightness, adjust_contrast, mean_luma, shift_hue
from dfine_jax.data.augment.effects import add_effects
from dfine_jax.data.augment.geometry import flip, flip_vertical, rotate, turn_90
from dfine_jax.data.augment.sample import Distortion, Sample, chance, sanitize
from dfine_jax.data.augment.schedule import policy
from dfine_jax.data.picture.resampling import Interpolation, inner_px, resize_bilinear
from dfine_jax.ops.boxes import iou

_IOU_OPTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_CROP_TRIALS = 40
_CROP_SCALE = (0.3, 1.0)
_CROP_ASPECT = (0.5, 2.0)
_ZOOM = (1.0, 4.0)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)


def augment(
    rng: np.random.Generator,
    sample: Sample,
    config: DataConfig,
    epoch: int,
    *,
    is_mosaic: bool = False,
    interpolation: Interpolation = "bilinear_antialias",
) -> Sample:
    """All training operations up to the model's input size; which of them an epoch has, ``schedule.policy`` says.

    A mosaic is neither zoomed out nor cropped nor rotated; one with a random centre is complete.
    """
    if is_mosaic and config.mosaic_layout == "random_centre":
        return sanitize(sample)
    allowed = policy(config, epoch)
    if allowed.strong:
        sample = add_effects(rng, sample, config)
        if not is_mosaic:
            sample = rotate(rng, sample, config.rotation_prob, config.rotation_deg)
        sample = photometric_distort(rng, sample, config.photometric_prob)
        if not is_mosaic:
            sample = zoom_out(rng, sample, config.zoom_out_prob)
            sample = iou_crop(rng, sample, config.iou_crop_prob)
            sample = square_crop(rng, sample, config)
    sample = sanitize(sample)
    if allowed.flip:
        sample = flip(rng, sample, config.flip_prob)
        sample = flip_vertical(rng, sample, config.flip_vertical_prob)
        sample = turn_90(rng, sample, config.turn_90_prob)
    letterbox = config.resize == "letterbox"
    size = config.height_px, config.width_px
    given = {"clip": config.clip_boxes, "interpolation": interpolation, "border": config.border}
    return sanitize(resize(sample, *size, letterbox=letterbox, **given))


def photometric_distort(rng: np.random.Generator, sample: Sample, prob: float) -> Sample:
    """Brightness, contrast (before or after the colours), saturation, hue, channel order: each with probability."""
    apply = rng.random(5) < prob
    contrast_first = bool(rng.random() < 0.5)
    brightness, contrast, saturation, hue = (rng.uniform(*span) for span in (_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE))
    order = tuple(rng.permutation(3).tolist())
    return sample._replace(
        distortion=Distortion(
            brightness=brightness if apply[0] else None,
            contrast=contrast if apply[1] else None,
            contrast_first=contrast_first,
            saturation=saturation if apply[2] else None,
            hue=hue if apply[3] else None,
            channels=order if apply[4] else None,
        )
    )


def distort(image: Image.Image, d: Distortion, visible_px: tuple[int, int, int, int]) -> Image.Image:
    """The distorted part ``visible_px`` of an image.

    All operations act pixel by pixel, except that contrast needs the mean of the whole image as it is at that point.
    """
    if d.brightness is not None and d.contrast is not None:
        image = adjust_brightness(image, d.brightness)
    whole = d.contrast is not None and not d.contrast_first
    grey = mean_luma(image) if d.contrast is not None and d.contrast_first else None
    if not whole and visible_px != (0, 0, *image.size):
        image = image.crop(visible_px)
    if d.brightness is not None and d.contrast is None:
        image = adjust_brightness(image, d.brightness)
    if d.contrast is not None and grey is not None:
        image = adjust_contrast(image, d.contrast, grey)
    if d.saturation is not None:
        image = ImageEnhance.Color(image).enhance(d.saturation)
    if d.hue is not None:
        image = shift_hue(image, d.hue)
    if d.contrast is not None and whole:
        image = adjust_contrast(image.crop(visible_px), d.contrast, mean_luma(image))
    if d.channels is not None:
        bands = image.split()
        image = Image.merge("RGB", [bands[i] for i in d.channels])
    return image


def zoom_out(rng: np.random.Generator, sample: Sample, prob: float) -> Sample:
    """Place the image on a black canvas up to four times as wide and high."""
    if rng.random() >= prob:
        return sample
    width, height = sample.size_px
    ratio = rng.uniform(*_ZOOM)
    canvas_width, canvas_height = int(width * ratio), int(height * ratio)
    u, v = rng.random(2)
    left, top = int((canvas_width - width) * u), int((canvas_height - height) * v)
    boxes = sample.boxes_xyxy_px + np.array([left, top, left, top], np.float32)
    x, y = sample.window_px[:2]
    window = (x - left, y - top, x - left + canvas_width, y - top + canvas_height)
    masks = object_masks.moved(sample.masks, (1, 1), (left, top))
    return sample._replace(window_px=window, boxes_xyxy_px=boxes, masks=masks)


def iou_crop(rng: np.random.Generator, sample: Sample, prob: float) -> Sample:
    """Crop so that at least one object keeps a drawn overlap with the crop (arXiv 1512.02325, section 2.2).

    An overlap of 1 means no crop; it is drawn sooner or later for images without objects, which stay whole.
    """
    if rng.random() >= prob or not len(sample.labels):
        return sample
    while True:
        overlap = _IOU_OPTIONS[rng.integers(len(_IOU_OPTIONS))]
        if overlap >= 1.0:
            return sample
        crop = _draw_crop(rng, sample, overlap)
        if crop is not None:
            return _cut(sample, *crop)


def square_crop(rng: np.random.Generator, sample: Sample, config: DataConfig) -> Sample:
    """A square anywhere in the picture, as large as if the picture had another size (RF-DETR's jitter of scales).

    The picture's short side counts as one of ``square_crop_short_px``, and the square's side is drawn from
    ``square_crop_px``, as far as it fits. The reference resizes the picture first and the square again; here the square
    is cut from the pixels as they are, at whole ones, and resampled once.
    """
    if not chance(rng, config.square_crop_prob):
        return sample
    width, height = sample.size_px
    short = int(rng.choice(config.square_crop_short_px))
    scale = min(width, height) / short  # pixels of the picture for one as it counts
    most = min(config.square_crop_px[1], short)
    side = int(rng.integers(min(config.square_crop_px[0], most), most + 1))
    left, top = (int(rng.integers(round(length / scale) - side + 1)) for length in (width, height))
    x0, y0, x1, y1 = (round(scale * value) for value in (left, top, left + side, top + side))
    crop = min(x0, width - 1), min(y0, height - 1), min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
    return _cut(sample, crop, np.ones(len(sample.labels), bool))


def _draw_crop(
    rng: np.random.Generator, sample: Sample, overlap: float
) -> tuple[tuple[int, int, int, int], Bool[np.ndarray, " g"]] | None:
    """First acceptable of 40 random rectangles and the objects whose centres it holds; None when all fail.

    The trials are independent, so drawing all of them at once has the distribution of drawing one by one.
    """
    width, height = sample.size_px
    draws = rng.random((4, _CROP_TRIALS))
    low, high = _CROP_SCALE
    crop_width = (width * (low + (high - low) * draws[0])).astype(np.int64)
    crop_height = (height * (low + (high - low) * draws[1])).astype(np.int64)
    left = ((width - crop_width) * draws[2]).astype(np.int64)
    top = ((height - crop_height) * draws[3]).astype(np.int64)
    aspect = crop_width / np.maximum(crop_height, 1)
    usable = (crop_width > 0) & (crop_height > 0) & (aspect >= _CROP_ASPECT[0]) & (aspect <= _CROP_ASPECT[1])

    crops = np.stack([left, top, left + crop_width, top + crop_height], 1).astype(np.float32)[:, None]  # [t, 1, 4]
    boxes = sample.boxes_xyxy_px[None]  # [1, g, 4]
    centre = 0.5 * (boxes[..., :2] + boxes[..., 2:])
    inside = np.all((crops[..., :2] < centre) & (centre < crops[..., 2:]), axis=-1)  # [t, g]
    best = np.where(inside, iou(boxes, crops), -1.0).max(1)
    good = np.flatnonzero(usable & (best >= overlap))
    if not len(good):
        return None
    trial = int(good[0])
    x0, y0, x1, y1 = (int(v) for v in crops[trial, 0])
    return (x0, y0, x1, y1), inside[trial]


def _cut(sample: Sample, crop: tuple[int, int, int, int], inside: Bool[np.ndarray, " g"]) -> Sample:
    x0, y0, x1, y1 = crop
    boxes = sample.boxes_xyxy_px - np.array([x0, y0, x0, y0], np.float32)
    boxes = boxes.clip(0, np.array([x1 - x0, y1 - y0] * 2, np.float32))
    boxes[~inside] = 0.0  # no area: the next sanitising drops them
    left, top = sample.window_px[:2]
    return sample._replace(
        window_px=(left + x0, top + y0, left + x1, top + y1),
        boxes_xyxy_px=boxes,
        masks=object_masks.cut(object_masks.moved(sample.masks, (1, 1), (-x0, -y0)), (x1 - x0, y1 - y0)),
    )


def resize(
    sample: Sample,
    height_px: int,
    width_px: int,
    *,
    letterbox: bool = False,
    clip: bool = True,
    interpolation: Interpolation = "bilinear_antialias",
    border: int = 0,
) -> Sample:
    """Render the window at the given size.

    Args:
      letterbox: keep the aspect, in the middle of a picture of the level ``border``; else stretch.
      clip: keep boxes that touch the right or bottom edge inside the picture. Their scaled corners may exceed it by a
        rounding error of float32, and ``sanitize`` then drops them: so the reference loses such objects.
    """
    width, height = sample.size_px
    left, top, inner_width, inner_height = inner_px((width, height), height_px, width_px, letterbox)
    scale = inner_width / width, inner_height / height
    boxes = sample.boxes_xyxy_px * np.array(scale * 2, np.float32)
    if letterbox:
        boxes += np.array([left, top] * 2, np.float32)
    if clip:
        np.minimum(boxes, np.array([left + inner_width, top + inner_height] * 2, np.float32), out=boxes)
    image = render(sample, inner_height, inner_width, interpolation)
    if image.size != (width_px, height_px):
        picture = Image.new("RGB", (width_px, height_px), (border,) * 3)
        picture.paste(image, (left, top))
        image = picture
    masks = object_masks.moved(sample.masks, scale, (left, top))
    return Sample(image, (0, 0, width_px, height_px), boxes, sample.labels, masks=masks)


def render(
    sample: Sample, height_px: int, width_px: int, interpolation: Interpolation = "bilinear_antialias"
) -> Image.Image:
    """The window's pixels, distorted and stretched."""
    image, (left, top, right, bottom) = sample.image, sample.window_px
    if sample.distortion is not None:
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
        if x0 < x1 and y0 < y1:  # a window beside the image shows black only
            image = distort(image, sample.distortion, (x0, y0, x1, y1))
            left, top, right, bottom = left - x0, top - y0, right - x0, bottom - y0
    if interpolation == "bilinear":
        return Image.fromarray(resize_bilinear(np.asarray(image), height_px, width_px, (left, top, right, bottom)))
    if (left, top, right, bottom) == (0, 0, *image.size):
        return image.resize((width_px, height_px), Image.Resampling.BILINEAR)
    across = _lit(left, right, image.width, width_px)
    down = _lit(top, bottom, image.height, height_px)
    if across.is_all and down.is_all:
        image = image.crop((left, top, right, bottom))
        return image.resize((width_px, height_px), Image.Resampling.BILINEAR)
    out = Image.new("RGB", (width_px, height_px))
    if across.size and down.size:
        part = image.crop(
            (left + across.source[0], top + down.source[0], left + across.source[1], top + down.source[1])
        )
        box = (across.box[0], down.box[0], across.box[1], down.box[1])
        part = part.resize((across.size, down.size), Image.Resampling.BILINEAR, box=box)
        out.paste(part, (across.first, down.first))
    return out


class _Lit(NamedTuple):
    """The part of one axis of the output that can show the image and not only black, and where it comes from."""

    first: int  # output pixel
    size: int  # output pixels
    source: tuple[int, int]  # of the window, with all that the filter reads
    box: tuple[float, float]  # what the output pixels stand for, relative to source[0]
    is_all: bool


def _lit(low: int, high: int, image_side: int, out_side: int) -> _Lit:
    """Pillow's bilinear filter reads up to ``max(1, scale)`` window pixels beside the centre of an output pixel.

    Pillow takes ``box`` as float32. In steps of the odd part of ``out_side`` output pixels it is exact there, so that
    the part gets the filter of the whole.
    """
    length = high - low
    scale = length / out_side
    reach = max(1.0, scale) + 1
    begin, end = max(0, -low), min(length, image_side - low)  # of the image, in the window
    if begin >= end:
        return _Lit(0, 0, (0, 0), (0.0, 0.0), False)
    step = out_side // (out_side & -out_side)
    first = max(0, math.floor((begin - reach) / scale - 0.5)) // step * step
    last = min(out_side, -(-math.ceil((end + reach) / scale + 0.5) // step) * step)
    source = max(0, math.floor(first * scale - reach)), min(length, math.ceil(last * scale + reach))
    box = first * length / out_side - source[0], last * length / out_side - source[0]
    return _Lit(first, last - first, source, box, first == 0 and last == out_side)
