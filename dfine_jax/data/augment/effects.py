"""Operations on the pixels of a whole picture, each with its probability (D-FINE-seg; limits as in Albumentations)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageFilter

from dfine_jax.config import DataConfig
from dfine_jax.data.augment.sample import Sample, chance, selected

_HOLES = (1, 2)
_HOLE = (0.05, 0.15)  # of the picture's sides
_BRIGHTNESS = _CONTRAST = (-0.2, 0.2)
_GAMMA = (0.8, 1.2)
_BLUR_PX = (3, 5, 7)  # sides of the square that is averaged
_NOISE = (0.1, 0.2)  # standard deviation, of the range of values


def add_effects(rng: np.random.Generator, sample: Sample, config: DataConfig) -> Sample:
    """Dropout, brightness with contrast, gamma, blur, noise, grey, in this order; the sample shows its whole image."""
    if chance(rng, config.dropout_prob):
        sample = dropout(rng, sample)
    image = sample.image
    if chance(rng, config.brightness_prob):
        image = brightness(image, rng.uniform(*_BRIGHTNESS), rng.uniform(*_CONTRAST))
    if chance(rng, config.gamma_prob):
        image = gamma(image, rng.uniform(*_GAMMA))
    if chance(rng, config.blur_prob):
        image = image.filter(ImageFilter.BoxBlur(int(rng.choice(_BLUR_PX)) // 2))
    if chance(rng, config.noise_prob):
        image = noise(rng, image, rng.uniform(*_NOISE))
    if chance(rng, config.grey_prob):
        image = image.convert("L").convert("RGB")
    return sample._replace(image=image)


def dropout(rng: np.random.Generator, sample: Sample) -> Sample:
    """One or two black rectangles; an object whose box is wholly under one is dropped, others keep box and mask."""
    image, size = sample.image.copy(), np.array(sample.image.size)
    boxes = sample.boxes_xyxy_px
    seen = np.ones(len(boxes), bool)
    for _ in range(rng.integers(_HOLES[0], _HOLES[1] + 1)):
        side = np.maximum(1, (size * rng.uniform(*_HOLE, 2)).astype(int))
        low = rng.integers(0, size - side + 1)
        image.paste((0, 0, 0), (*low.tolist(), *(low + side).tolist()))
        seen &= (boxes[:, :2] < low).any(1) | (boxes[:, 2:] > low + side).any(1)
    return selected(sample._replace(image=image), seen)


def brightness(image: Image.Image, shift: float, contrast: float) -> Image.Image:
    """Values times 1 + ``contrast`` plus ``shift``, a share of the range of values."""
    return _by_table(image, np.arange(256) * (1 + contrast) + 255 * shift)


def gamma(image: Image.Image, exponent: float) -> Image.Image:
    """Values, from 0 to 1, to the power of ``exponent``."""
    return _by_table(image, 255 * (np.arange(256) / 255) ** exponent)


def noise(rng: np.random.Generator, image: Image.Image, deviation: float) -> Image.Image:
    """Gaussian noise of each pixel and channel; ``deviation`` is a share of the range of values."""
    values: Float32[np.ndarray, "h w 3"] = rng.standard_normal((image.height, image.width, 3), np.float32)
    values *= 255 * deviation
    values += np.asarray(image)
    return Image.fromarray((values + np.float32(0.5)).clip(0, 255).astype(np.uint8))


def _by_table(image: Image.Image, values: np.ndarray) -> Image.Image:
    return image.point((values + 0.5).clip(0, 255).astype(np.uint8).tolist() * 3)
