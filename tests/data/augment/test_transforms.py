"""The distributions of spec'd operations, small exact cases, and pixels against the plain Pillow pipeline."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import transforms as T  # noqa: N812
from dfine_jax.data.augment.geometry import flip
from dfine_jax.data.augment.sample import make_sample, normalised_cxcywh, sanitize

SIGNIFICANCE = 1e-4  # draws are seeded: a test passes or fails for good


def picture(width=40, height=30, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def sample_of(boxes, width=40, height=30, seed=0):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return make_sample(picture(width, height, seed), boxes, np.arange(len(boxes), dtype=np.int32))


def uniform(values, low, high):
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > SIGNIFICANCE


def share(hits, expected):
    return stats.binomtest(int(np.sum(hits)), len(hits), expected).pvalue > SIGNIFICANCE


def independent(a, b):
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    return stats.chi2_contingency(table).pvalue > SIGNIFICANCE


# --- photometric -----------------------------------------------------------------------------------------------------


def draws(count=4000, prob=0.5):
    rng, base = np.random.default_rng(1), sample_of([])
    return [T.photometric_distort(rng, base, prob).distortion for _ in range(count)]


def test_photometric_parameters_have_the_reference_distribution():
    drawn = draws()
    spans = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}
    applied = {name: np.array([getattr(d, name) is not None for d in drawn]) for name in (*spans, "channels")}
    for name, span in spans.items():
        assert share(applied[name], 0.5), name
        assert uniform([getattr(d, name) for d in drawn if getattr(d, name) is not None], *span), name
    assert share(applied["channels"], 0.5)
    assert share([d.contrast_first for d in drawn], 0.5)
    for first, second in (("brightness", "contrast"), ("contrast", "saturation"), ("saturation", "hue")):
        assert independent(applied[first], applied[second])
    orders = [d.channels for d in drawn if d.channels]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_photometric_probability_ends():
    assert all(d[:2] == (None, None) and d[3:] == (None,) * 3 for d in draws(50, 0.0))
    assert all(None not in d for d in draws(50, 1.0))


def plain_hue(image, fraction):
    bands = np.array(image.convert("HSV"))
    bands[..., 0] = (bands[..., 0].astype(int) + int(255 * fraction)) % 256
    return Image.fromarray(bands, "HSV").convert("RGB")


def plain_distort(image, d):
    """Op by op on the whole image, as torchvision does on Pillow images."""
    if d.brightness is not None:
        image = ImageEnhance.Brightness(image).enhance(d.brightness)
    if d.contrast is not None and d.contrast_first:
        image = ImageEnhance.Contrast(image).enhance(d.contrast)
    if d.saturation is not None:
        image = ImageEnhance.Color(image).enhance(d.saturation)
    if d.hue is not None:
        image = plain_hue(image, d.hue)
    if d.contrast is not None and not d.contrast_first:
        image = ImageEnhance.Contrast(image).enhance(d.contrast)
    if d.channels is not None:
        image = Image.fromarray(np.asarray(image)[..., list(d.channels)])
    return image


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lazy_pixels_equal_the_plain_pipeline():
    changed = reordered = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        start = sample_of([[5, 5, 25, 20], [20, 10, 38, 28]], seed=seed)
        sample = T.photometric_distort(rng, start, 0.6)
        expected = plain_distort(start.image, sample.distortion)
        zoomed = T.zoom_out(rng, sample, 0.5)
        canvas = Image.new("RGB", zoomed.size_px)
        canvas.paste(expected, (-zoomed.window_px[0], -zoomed.window_px[1]))
        cropped = T.iou_crop(rng, zoomed, 0.8)
        x, y = zoomed.window_px[:2]
        expected = canvas.crop(tuple(v - o for v, o in zip(cropped.window_px, (x, y, x, y), strict=True)))
        flipped = flip(rng, cropped, 0.5)
        if flipped is not cropped:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        result = T.resize(flipped, 24, 32)
        expected = expected.resize((32, 24), Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(result.image).astype(int) - np.asarray(expected))
        assert difference.max() <= 1, seed
        reordered += bool(difference.any())
        changed += zoomed is not sample and cropped is not zoomed and flipped is not cropped
    assert changed > 5 and reordered < 12


@pytest.mark.parametrize("size", [(640, 640), (480, 800), (96, 36), (7, 5)])
def test_only_the_lit_part_is_computed_and_the_rest_is_black(size):
    rng, same, count = np.random.default_rng(0), 0, 60
    for number in range(count):
        base = sample_of([], *rng.integers(2, 120, 2).tolist(), seed=number)
        left, top = rng.integers(-200, 100, 2).tolist()
        window = (left, top, left + int(rng.integers(1, 400)), top + int(rng.integers(1, 400)))
        expected = base.image.crop(window).resize(size[::-1], Image.Resampling.BILINEAR)
        result = T.render(base._replace(window_px=window), *size)
        difference = np.abs(np.asarray(result).astype(int) - np.asarray(expected))
        assert result.size == expected.size and difference.max() <= 1
        same += not difference.any()
    assert same > 0.9 * count


# --- zooming out -----------------------------------------------------------------------------------------------------


def test_zoom_out_distribution():
    rng, base, zoomed = np.random.default_rng(3), sample_of([[1, 2, 3, 4]], 1000, 800), []
    for _ in range(3000):
        zoomed.append(T.zoom_out(rng, base, 0.5))
    assert share([s is not base for s in zoomed], 0.5)
    moved = [s for s in zoomed if s is not base]
    sizes = np.array([s.size_px for s in moved])
    offsets = -np.array([s.window_px[:2] for s in moved])
    assert uniform(sizes[:, 0] / 1000, 1, 4) and (np.abs(sizes[:, 0] / 1000 - sizes[:, 1] / 800) < 0.003).all()
    room = sizes - [1000, 800]
    large = (room > 300).all(1)  # truncation to whole pixels does not matter there
    assert uniform(offsets[large, 0] / room[large, 0], 0, 1) and uniform(offsets[large, 1] / room[large, 1], 0, 1)
    assert np.abs(np.corrcoef((offsets[large] / room[large]).T)[0, 1]) < 0.1


def test_zoom_out_shifts_boxes_and_paints_black():
    base = sample_of([[1, 2, 3, 4]])
    zoomed = T.zoom_out(np.random.default_rng(4), base, 1.0)
    left, top = -zoomed.window_px[0], -zoomed.window_px[1]
    np.testing.assert_array_equal(zoomed.boxes_xyxy_px, [[1 + left, 2 + top, 3 + left, 4 + top]])
    width, height = zoomed.size_px
    pixels = np.asarray(T.render(zoomed, height, width))
    np.testing.assert_array_equal(pixels[top : top + 30, left : left + 40], np.asarray(base.image))
    assert pixels.sum() == np.asarray(base.image, np.int64).sum()


# --- cropping --------------------------------------------------------------------------------------------------------


def plain_crop(rng, sample):
    """The loop of the definition, one draw at a time; None = unchanged."""
    width, height = sample.size_px
    boxes = sample.boxes_xyxy_px.astype(np.float64)
    while True:
        overlap = rng.choice([0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
        if overlap >= 1:
            return None
        for _ in range(40):
            w, h = int(width * rng.uniform(0.3, 1)), int(height * rng.uniform(0.3, 1))
            if not 0.5 <= w / h <= 2:
                continue
            left, top = int((width - w) * rng.random()), int((height - h) * rng.random())
            x, y = boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)
            inside = (left < x) & (x < left + w) & (top < y) & (y < top + h)
            if not inside.any():
                continue
            wide = np.minimum(boxes[:, 2], left + w) - np.maximum(boxes[:, 0], left)
            high = np.minimum(boxes[:, 3], top + h) - np.maximum(boxes[:, 1], top)
            common = wide.clip(0) * high.clip(0)
            union = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) + w * h - common
            if (common / union)[inside].max() >= overlap:
                return left, top, left + w, top + h


@pytest.mark.parametrize("boxes", [[[30, 20, 130, 90]], [[5, 5, 60, 50], [100, 60, 190, 110], [150, 5, 160, 12]]])
def test_crop_distribution_equals_the_loop_of_the_definition(boxes):
    base = sample_of(boxes, 200, 120)
    whole = (0, 0, 200, 120)
    rng, other = np.random.default_rng(5), np.random.default_rng(6)
    ours = np.array([T.iou_crop(rng, base, 1.0).window_px for _ in range(3000)])
    theirs = np.array([plain_crop(other, base) or whole for _ in range(3000)])
    unchanged = [(crops == whole).all(1) for crops in (ours, theirs)]
    table = [[u.sum(), (~u).sum()] for u in unchanged]
    assert stats.chi2_contingency(table).pvalue > SIGNIFICANCE
    for edge in range(4):
        a, b = (crops[~u, edge] for crops, u in zip((ours, theirs), unchanged, strict=True))
        assert stats.ks_2samp(a, b).pvalue > SIGNIFICANCE, edge
    area = [np.prod(c[~u, 2:] - c[~u, :2], axis=1) for c, u in zip((ours, theirs), unchanged, strict=True)]
    assert stats.ks_2samp(*area).pvalue > SIGNIFICANCE


def test_crop_probability_and_images_without_objects():
    rng, empty, full = np.random.default_rng(7), sample_of([]), sample_of([[0, 0, 40, 30]])
    assert all(T.iou_crop(rng, empty, 1.0) is empty for _ in range(50))
    assert all(T.iou_crop(rng, full, 0.0) is full for _ in range(50))
    unchanged = np.array([T.iou_crop(rng, full, 0.8) is full for _ in range(2000)])
    always = np.array([T.iou_crop(rng, full, 1.0) is full for _ in range(2000)])
    assert share(unchanged, 0.2 + 0.8 * always.mean())


def test_crop_of_a_tiny_image_ends():
    tiny = sample_of([[0, 0, 2, 1]], 2, 1)
    for seed in range(30):
        width, height = T.iou_crop(np.random.default_rng(seed), tiny, 1.0).size_px
        assert width >= 1 and height >= 1


def test_objects_with_centre_outside_are_dropped_and_others_clamped():
    cut = T._cut(
        sample_of([[0, 0, 20, 20], [8, 8, 30, 28], [30, 5, 40, 9]]), (10, 5, 30, 25), np.array([0, 1, 0], bool)
    )
    assert cut.window_px == (10, 5, 30, 25)
    np.testing.assert_array_equal(cut.boxes_xyxy_px, [[0, 0, 0, 0], [0, 3, 20, 20], [0, 0, 0, 0]])
    clean = sanitize(cut)
    assert clean.labels.tolist() == [1]


# --- the rest --------------------------------------------------------------------------------------------------------


def test_sanitize_keeps_one_pixel_and_drops_less():
    boxes = [[0, 0, 1, 1], [0, 0, 0.9, 5], [0, 0, 5, 0.9], [39, 29, 40, 30], [39, 28, 40.5, 30], [-1, 0, 5, 5]]
    clean = sanitize(sample_of(boxes))
    assert clean.labels.tolist() == [0, 3]
    np.testing.assert_array_equal(clean.boxes_xyxy_px, np.array(boxes, np.float32)[[0, 3]])


def test_flip():
    base = sample_of([[1, 2, 11, 7]])
    flipped = flip(np.random.default_rng(0), base, 1.0)
    np.testing.assert_array_equal(flipped.boxes_xyxy_px, [[29, 2, 39, 7]])
    np.testing.assert_array_equal(np.asarray(flipped.image), np.asarray(base.image)[:, ::-1])
    rng = np.random.default_rng(8)
    assert share([flip(rng, base, 0.5) is not base for _ in range(2000)], 0.5)


def test_resize_and_normalise():
    result = T.resize(sample_of([[10, 3, 20, 15]]), height_px=60, width_px=20)
    assert result.image.size == (20, 60)
    np.testing.assert_allclose(result.boxes_xyxy_px, [[5, 6, 10, 30]])
    np.testing.assert_allclose(normalised_cxcywh(result), [[7.5 / 20, 18 / 60, 5 / 20, 24 / 60]])


def config(**changes):
    return DataConfig(height_px=24, width_px=32, **changes)


def run(epoch, settings, seeds=40):
    base = sample_of([[5, 5, 25, 20]])
    return [T.augment(np.random.default_rng(seed), base, settings, epoch) for seed in range(seeds)]


def test_strong_operations_stop_at_their_epoch():
    plain = picture().resize((32, 24), Image.Resampling.BILINEAR)
    mirrored = plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped = picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((32, 24), Image.Resampling.BILINEAR)
    late = [s.image.tobytes() for s in run(10, config(stop_augment_epoch=10))]
    assert set(late) == {plain.tobytes(), flipped.tobytes()}
    others = {"rotation_prob": 1.0, "noise_prob": 1.0, "dropout_prob": 1.0}
    assert {s.image.tobytes() for s in run(10, config(stop_augment_epoch=10, **others))} == set(late)
    turned = {
        s.image.tobytes() for s in run(10, config(stop_augment_epoch=10, turn_90_prob=1.0, flip_vertical_prob=0.5))
    }
    assert len(turned) == 4 and not turned & set(late)
    early = [s.image.tobytes() for s in run(9, config(stop_augment_epoch=10))]
    assert len(set(early) - {plain.tobytes(), flipped.tobytes(), mirrored.tobytes()}) > 25


def test_augment_none_only_resizes():
    plain = picture().resize((32, 24), Image.Resampling.BILINEAR).tobytes()
    assert {s.image.tobytes() for s in run(0, config(augment="none"))} == {plain}


def test_augment_gives_valid_boxes_and_is_deterministic():
    for first, second in zip(run(0, config()), run(0, config()), strict=True):
        assert first.image.tobytes() == second.image.tobytes() and first.image.size == (32, 24)
        np.testing.assert_array_equal(first.boxes_xyxy_px, second.boxes_xyxy_px)
        assert first.boxes_xyxy_px.dtype == np.float32 and len(first.labels) == len(first.boxes_xyxy_px)
        size = first.boxes_xyxy_px[:, 2:] - first.boxes_xyxy_px[:, :2]
        assert (size >= 1).all() and (first.boxes_xyxy_px >= 0).all()


def test_images_without_objects_pass_through():
    result = T.augment(np.random.default_rng(0), sample_of([]), config(), 0)
    assert result.boxes_xyxy_px.shape == (0, 4) and normalised_cxcywh(result).shape == (0, 4)


# --- a square of a resized picture -----------------------------------------------------------------------------------


def test_squares_have_the_reference_distribution():
    """Of 600x400 pixels: the short side is 400, 500 or 600; the square's 384 to it, anywhere (rfdetr 1.11.2)."""
    rng, config = np.random.default_rng(0), DataConfig(square_crop_prob=0.5)
    base = sample_of([[0, 0, 600, 400]], 600, 400)
    drawn = [T.square_crop(rng, base, config) for _ in range(6000)]
    cut = [s for s in drawn if s is not base]
    assert share([s is not base for s in drawn], 0.5)
    sides = np.array([s.size_px[1] for s in cut])
    assert np.abs(np.array([s.size_px[0] for s in cut]) - sides).max() <= 1  # whole pixels on both axes
    shorts = (400, 500, 600)
    expected = np.concatenate([np.arange(384, short + 1) * (400 / short) for short in shorts])
    weights = np.concatenate([np.full(short - 383, 1 / (3 * (short - 383))) for short in shorts])
    order = np.argsort(expected)
    theirs = np.interp(np.linspace(0.02, 0.98, 25), np.cumsum(weights[order]), expected[order])
    assert np.abs(np.quantile(sides, np.linspace(0.02, 0.98, 25)) - theirs).max() < 5
    free = [(s.window_px[0] / (600 - s.size_px[0]), s.window_px[1], s.size_px) for s in cut if s.size_px[1] < 320]
    assert len(free) > 300 and uniform([left + 1e-3 * np.sin(i) for i, (left, *_) in enumerate(free)], 0, 1)
    for s in cut[:200]:
        left, top, right, bottom = s.window_px
        assert 0 <= left < right <= 600 and 0 <= top < bottom <= 400
        np.testing.assert_array_equal(s.boxes_xyxy_px, [[0, 0, right - left, bottom - top]])


def test_squares_keep_what_they_show_of_objects():
    config = DataConfig(square_crop_prob=1.0, height_px=64, width_px=64, photometric_prob=0.0, zoom_out_prob=0.0)
    config = dataclasses.replace(config, iou_crop_prob=0.0, flip_prob=0.0)
    base = sample_of([[10, 10, 30, 30], [280, 5, 299, 60], [130, 80, 170, 120]], 300, 200)
    counts = []
    for seed in range(50):
        crop = T.square_crop(np.random.default_rng((seed,)), base, config)
        left, top, right, bottom = crop.window_px
        moved = base.boxes_xyxy_px - np.float32([left, top, left, top])
        seen = moved.clip(0, [right - left, bottom - top] * 2)
        np.testing.assert_array_equal(crop.boxes_xyxy_px, seen)
        whole = T.augment(np.random.default_rng((seed,)), base, config, 0)
        assert whole.image.size == (64, 64)
        assert (whole.boxes_xyxy_px >= 0).all() and (whole.boxes_xyxy_px <= 64).all()
        counts.append(len(whole.labels))
    assert set(counts) >= {1, 2}  # objects beside the square are dropped


def test_nothing_is_drawn_without_squares():
    rng = np.random.default_rng(3)
    assert T.square_crop(rng, sample_of([]), DataConfig()) is not None
    assert rng.random() == np.random.default_rng(3).random()
