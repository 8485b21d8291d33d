"""Operations on pixels: their formulas, their probabilities, and what a hole does to objects."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import effects
from dfine_jax.data.augment import masks as object_masks
from dfine_jax.data.augment.sample import make_sample
from dfine_jax.data.read.outlines import parse_segmentation

EFFECTS = ("dropout_prob", "brightness_prob", "gamma_prob", "blur_prob", "noise_prob", "grey_prob")
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def sample(boxes=((5, 5, 70, 55),)):
    boxes = np.array(boxes, np.float32)
    outlines = [parse_segmentation([[a, b, c, b, c, d, a, d]]) for a, b, c, d in boxes.tolist()]
    masks = object_masks.make_masks(outlines, (80, 60))
    return make_sample(Image.fromarray(PIXELS), boxes, np.arange(len(boxes), dtype=np.int32), masks)


def only(name, prob=1.0):
    return DataConfig(**{name: prob})


def test_brightness_with_contrast_and_gamma():
    image = Image.fromarray(PIXELS)
    expected = (PIXELS * 1.15 - 0.1 * 255).clip(0, 255)
    assert np.abs(np.asarray(effects.brightness(image, -0.1, 0.15)) - expected).max() <= 0.5 + 1e-9
    expected = 255 * (PIXELS / 255) ** 0.83
    assert np.abs(np.asarray(effects.gamma(image, 0.83)) - expected).max() <= 0.5 + 1e-9


def test_noise_has_its_deviation_in_every_channel():
    image = Image.new("RGB", (300, 200), (128, 128, 128))
    difference = np.asarray(effects.noise(np.random.default_rng(0), image, 0.1)).astype(float) - 128
    assert np.abs(difference.mean((0, 1))).max() < 0.5 and np.abs(difference.std((0, 1)) - 25.5).max() < 0.3
    assert np.abs(np.corrcoef(difference.reshape(-1, 3).T) - np.eye(3)).max() < 0.02
    assert stats.kstest(difference[..., 0].ravel() + np.random.default_rng(1).uniform(-0.5, 0.5, 60000), "norm",
                        args=(0, 25.5)).pvalue > 1e-4  # fmt: skip


def test_blur_averages_squares():
    seen = set()
    for seed in range(12):
        blurred = np.asarray(effects.add_effects(np.random.default_rng(seed), sample(), only("blur_prob")).image)
        for side in (3, 5, 7):
            mean = ndimage.uniform_filter(PIXELS.astype(float), (side, side, 1))
            if np.abs(blurred - mean)[5:-5, 5:-5].max() <= 1:
                seen.add(side)
    assert seen == {3, 5, 7}


def test_grey_is_the_luma():
    grey = np.asarray(effects.add_effects(np.random.default_rng(0), sample(), only("grey_prob")).image)
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey[..., 0] - PIXELS @ [0.299, 0.587, 0.114]).max() <= 1


def test_holes_have_their_size_and_hide_what_is_wholly_under_them():
    boxes = [(x, y, x + 2, y + 2) for x in range(0, 78, 3) for y in range(0, 58, 3)] + [(5, 5, 70, 55)]
    base, hidden = sample(boxes), 0
    base = base._replace(image=Image.new("RGB", (80, 60), "white"))
    for seed in range(40):
        out = effects.dropout(np.random.default_rng(seed), base)
        black = np.asarray(out.image)[..., 0] == 0
        parts, count = ndimage.label(black)
        assert 1 <= count <= 2
        if count == 2 and seed % 2:
            for rows, columns in ndimage.find_objects(parts):
                assert 3 <= rows.stop - rows.start <= 9 and 4 <= columns.stop - columns.start <= 12
        kept = set(out.labels.tolist())
        gone = [box for label, box in enumerate(boxes) if label not in kept]
        assert all(black[y0:y1, x0:x1].all() for x0, y0, x1, y1 in gone) and len(boxes) - 1 in kept
        assert len(out.masks.outlines) == len(out.labels)
        hidden += len(gone)
    assert hidden > 20


@pytest.mark.parametrize("name", EFFECTS)
def test_each_happens_with_its_probability_and_changes_pixels_alone(name):
    base = sample()
    rng = np.random.default_rng(5)
    outs = [effects.add_effects(rng, base, only(name, 0.3)) for _ in range(400)]
    changed = [out.image.tobytes() != base.image.tobytes() for out in outs]
    assert stats.binomtest(sum(changed), 400, 0.3).pvalue > 1e-4
    assert all(out.boxes_xyxy_px is base.boxes_xyxy_px and out.masks is base.masks for out in outs)
    before = rng.bit_generator.state
    assert effects.add_effects(rng, base, DataConfig()).image is base.image
    assert rng.bit_generator.state == before
