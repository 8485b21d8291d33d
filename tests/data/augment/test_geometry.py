"""Operations that move pixels: exact where nothing is resampled, and masks that fit the colours of their objects."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import geometry as G  # noqa: N812
from dfine_jax.data.augment import masks as M  # noqa: N812
from dfine_jax.data.augment.mosaic import mosaic, random_affine, tile
from dfine_jax.data.augment.sample import make_sample
from dfine_jax.data.augment.transforms import augment, iou_crop, render, resize, zoom_out
from dfine_jax.data.read.outlines import parse_segmentation
from dfine_jax.data.read.synthetic import uncompressed_run_lengths

SIZE = WIDTH, HEIGHT = 200, 150
COLOURS = np.array([[220, 20, 20], [20, 220, 20], [20, 20, 220]])
GROUND = 70
SHAPES = (
    [[10, 12, 90, 8, 100, 60, 50, 90, 20, 70, 10, 12, 40, 30, 40, 50, 70, 50, 70, 30, 40, 30]],  # with a hole
    [[120, 80, 150, 80, 150, 140, 120, 140], [165, 85, 195, 100, 170, 120]],  # of two parts
    [[105, -20, 230, -20, 230, 55, 105, 55]],  # annotated beyond the picture
)
INPUT = DataConfig(height_px=96, width_px=160, augment="dense", mosaic_layout="random_centre", mixup_prob=0.0)


def painted(shape):
    parts = M.make_masks([parse_segmentation(shape)], SIZE)
    return M.drawn(parts, HEIGHT, WIDTH, 1)[0] > 0


def scene(kind="polygons"):
    """Three objects, each of one colour; the hole shows the ground."""
    bits = [painted(shape) for shape in SHAPES]
    pixels = np.full((HEIGHT, WIDTH, 3), GROUND, np.uint8)
    for bitmap, colour in zip(bits, COLOURS, strict=True):
        pixels[bitmap] = colour
    if kind == "polygons":
        outlines = [parse_segmentation(shape) for shape in SHAPES]
    else:
        outlines = [parse_segmentation(uncompressed_run_lengths(bitmap)) for bitmap in bits]
    boxes = np.array([[10, 8, 100, 90], [120, 80, 195, 140], [105, 0, 200, 55]], np.float32)
    return make_sample(Image.fromarray(pixels), boxes, np.arange(3, dtype=np.int32), M.make_masks(outlines, SIZE))


def overlaps(sample, least_px=0):
    """IoU of each mask with the pixels of its colour (nearest of the three and grey); of more than so many pixels."""
    width, height = sample.size_px
    pixels = np.asarray(render(sample, height, width)).astype(int)
    grounds = [[GROUND] * 3, [0, 0, 0], G.GREY]
    distance = np.abs(pixels[:, :, None] - np.array([*COLOURS, *grounds])).sum(-1)
    nearest = distance.argmin(-1)
    drawn = M.drawn(sample.masks, height, width, 1) > 0
    out = []
    for label in range(3):
        mine, seen = drawn[sample.labels == label].any(0), nearest == label
        if max(mine.sum(), seen.sum()) > least_px:
            out.append((mine & seen).sum() / (mine | seen).sum())
    return out


@pytest.mark.parametrize("kind", ["polygons", "run lengths"])
@pytest.mark.parametrize(
    ("operation", "pixels"),
    [
        (G.flip, lambda image: image[:, ::-1]),
        (G.flip_vertical, lambda image: image[::-1]),
        (lambda rng, s, prob: G.transposed(s, G._TO_THE_LEFT), lambda image: np.rot90(image)),
        (lambda rng, s, prob: G.transposed(s, G._TO_THE_RIGHT), lambda image: np.rot90(image, -1)),
    ],
)
def test_mirrors_and_quarter_turns_are_exact(kind, operation, pixels):
    base = scene(kind)
    moved = operation(np.random.default_rng(0), base, 1.0)
    np.testing.assert_array_equal(np.asarray(moved.image), pixels(np.asarray(base.image)))
    for box, before in zip(moved.boxes_xyxy_px, base.boxes_xyxy_px, strict=True):
        x0, y0, x1, y1 = before.astype(int).tolist()
        covered = np.zeros((HEIGHT, WIDTH), bool)
        covered[y0:y1, x0:x1] = True
        rows, columns = np.nonzero(pixels(covered))
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    before, after = (M.drawn(s.masks, *s.size_px[::-1], 1) for s in (base, moved))
    if kind == "run lengths":
        np.testing.assert_array_equal(after, [pixels(mask) for mask in before])
    assert min(overlaps(moved)) > 0.96  # pycocotools rounds towards one side


def test_a_turned_window_shows_the_turned_picture():
    base = zoom_out(np.random.default_rng(1), scene(), 1.0)
    cropped = next(s for s in (iou_crop(np.random.default_rng(i), base, 1.0) for i in range(9)) if s is not base)
    assert cropped.window_px[0] < 0 or cropped.window_px[2] > WIDTH  # of picture and black
    turned = G.transposed(cropped, G._TO_THE_LEFT)
    assert turned.size_px == cropped.size_px[::-1]
    np.testing.assert_array_equal(
        render(turned, *turned.size_px[::-1]), np.rot90(render(cropped, *cropped.size_px[::-1]))
    )
    assert min(overlaps(turned)) > 0.95


def test_turns_go_to_both_sides_with_their_probability():
    rng, base = np.random.default_rng(0), scene()
    left = np.rot90(np.asarray(base.image)).tobytes()
    sides = [G.turn_90(rng, base, 0.4) for _ in range(600)]
    turned = [np.asarray(s.image).tobytes() == left for s in sides if s is not base]
    assert stats.binomtest(len(turned), 600, 0.4).pvalue > 1e-4
    assert stats.binomtest(sum(turned), len(turned), 0.5).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["polygons", "run lengths"])
def test_masks_and_boxes_of_a_rotated_picture(kind):
    base, angles = scene(kind), []
    for seed in range(12):
        turned = G.rotate(np.random.default_rng(seed), base, 1.0, 30.0)
        assert turned.size_px == SIZE and min(overlaps(turned)) > 0.9
        assert min(overlaps(G.flip(np.random.default_rng(0), turned, 1.0))) > 0.9
        reduced = resize(turned, 100, 100, letterbox=True)
        assert min(overlaps(reduced)) > 0.85
        angles.append(turned.masks.affine[0, 1, 0])
        drawn = M.drawn(turned.masks, HEIGHT, WIDTH, 1).any
        for box, rows, columns in zip(turned.boxes_xyxy_px, drawn(2), drawn(1), strict=True):
            assert box[0] <= columns.argmax() + 1 and box[2] >= WIDTH - columns[::-1].argmax() - 1
            assert box[1] <= rows.argmax() + 1 and box[3] >= HEIGHT - rows[::-1].argmax() - 1
    assert min(angles) < -0.2 and max(angles) > 0.2
    corner = np.asarray(G.rotate(np.random.default_rng(0), base, 1.0, 30.0).image)
    assert any(tuple(corner[y, x]) == G.GREY for y in (0, -1) for x in (0, -1))


def test_no_probability_draws_nothing():
    rng, base = np.random.default_rng(0), scene()
    before = rng.bit_generator.state
    for operation in (G.flip_vertical, G.turn_90, lambda *a: G.rotate(*a, 10.0)):
        assert operation(rng, base, 0.0) is base
    assert rng.bit_generator.state == before


# --- the mosaic with a random centre ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["polygons", "run lengths"])
@pytest.mark.parametrize("size", ["stretch", "letterbox"])
def test_masks_of_a_mosaic_with_a_random_centre(kind, size):
    config = DataConfig(**{**vars(INPUT), "resize": size, "mosaic_rotation_deg": 20.0, "mosaic_shear_deg": 8.0})
    objects = 0
    for seed in range(15):
        tiles = [tile(s, config) for s in (scene(kind), G.transposed(scene(kind), G._TO_THE_LEFT)) * 2]
        whole = mosaic(np.random.default_rng(seed), tiles, config)
        assert whole.size_px == (160, 96) and whole.image.size == (160, 96)
        assert len(whole.labels) == len(whole.boxes_xyxy_px) == len(whole.masks.affine)
        boxes = whole.boxes_xyxy_px
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (boxes >= 0).all() and (boxes <= [160, 96, 160, 96]).all() and (sides > 2).all()
        assert (sides.max(1) < 20 * sides.min(1)).all()
        objects += len(boxes)
        # Of an object that is dropped because little of it is seen, the pixels stay.
        assert np.median(overlaps(whole, 100) or [1.0]) > 0.75
    assert objects > 60


def test_what_the_canvas_cuts_off_is_hidden_after_shear_and_rotation():
    small = {"mosaic_scale": (0.5, 0.7), "mosaic_rotation_deg": 25.0, "mosaic_shear_deg": 10.0}
    config = DataConfig(**{**vars(INPUT), **small})
    full = parse_segmentation([[-5, -5, 205, -5, 205, 155, -5, 155]])
    cut = 0
    for seed in range(15):
        parts = []
        for kind in (full, parse_segmentation(uncompressed_run_lengths(np.ones((HEIGHT, WIDTH), bool)))):
            image = Image.new("RGB", SIZE, (250, 250, 250))
            box = np.array([[0, 0, *SIZE]], np.float32)
            parts.append(tile(make_sample(image, box, np.zeros(1, np.int32), M.make_masks([kind], SIZE)), config))
        whole = mosaic(np.random.default_rng(seed), [*parts, *parts], config)
        lit = np.asarray(whole.image)[..., 0] > 180
        drawn = (M.drawn(whole.masks, 96, 160, 1) > 0).any(0)
        if len(whole.labels) == 4:
            assert (drawn & lit).sum() / (drawn | lit).sum() > 0.96
            cut += 0.1 < lit.mean() < 0.9
    assert cut > 4


def test_the_affine_map_of_the_mosaic_has_its_limits():
    config = DataConfig(mosaic_rotation_deg=5.0, mosaic_shear_deg=3.0, mosaic_translation=0.2, mosaic_scale=(0.5, 1.5))
    rng = np.random.default_rng(0)
    maps = np.array([random_affine(rng, (1280, 1280), (640, 480), config) for _ in range(3000)])
    centre = maps[:, :, :2] @ [640, 640] + maps[:, :, 2] - [320, 240]
    jitter = np.random.default_rng(1).uniform(-0.5, 0.5, centre.shape)
    for axis, most in ((0, 128.5), (1, 96.5)):
        assert stats.kstest((centre + jitter)[:, axis], stats.uniform(-most, 2 * most).cdf).pvalue > 1e-4
    # linear = [[1, tan a], [tan b, 1]] @ scale @ rotation: its determinant is scale^2 (1 - tan a tan b).
    scale = np.sqrt(np.linalg.det(maps[:, :, :2]))
    assert 0.498 < scale.min() < 0.52 and 1.48 < scale.max() < 1.502
    slant = (maps[:, 0] * maps[:, 1])[:, :2].sum(1) / scale**2  # about tan a + tan b
    assert 0.08 < slant.max() < 0.106 and -0.106 < slant.min() < -0.08
    plain = random_affine(rng, (64, 64), (64, 64), DataConfig())[:, :2]
    assert abs(plain[0] @ plain[1]) < 1e-12


def test_a_mosaic_with_a_random_centre_is_complete():
    config = DataConfig(**{**vars(INPUT), "photometric_prob": 1.0, "flip_prob": 1.0, "noise_prob": 1.0})
    whole = mosaic(np.random.default_rng(0), [tile(scene(), config)] * 4, config)
    out = augment(np.random.default_rng(1), whole, config, 0, is_mosaic=True)
    assert out.image.tobytes() == whole.image.tobytes()
    other = augment(np.random.default_rng(1), scene(), config, 0)
    assert other.image.size == (160, 96) and other.masks is not None


def test_tiles_meet_at_a_random_point():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    still = {"mosaic_rotation_deg": 0.0, "mosaic_translation": 0.0, "mosaic_scale": (0.5, 0.5)}
    config = DataConfig(**{**vars(INPUT), **still})
    empty = np.empty((0, 4), np.float32)
    tiles = [tile(make_sample(Image.new("RGB", SIZE, c), empty, np.zeros(0, np.int32)), config) for c in colours]
    points, grey = [], 0.0
    for seed in range(300):
        pixels = np.asarray(mosaic(np.random.default_rng(seed), tiles, config).image)
        seen = [(pixels == c).all(2) for c in colours]
        grey += (pixels == G.GREY).all(2).mean() / 300
        assert all(area.any() for area in seen)
        rows, columns = np.nonzero(seen[3])
        points.append((columns.min() / 160 * 2, rows.min() / 96 * 2))  # of the input's sides, on the canvas
        assert seen[0][: rows.min() - 1, : columns.min() - 1].any() and not seen[0][rows.min() + 1 :].any()
    points = np.array(points)
    assert abs(grey - 0.19) < 0.02  # beside each axis a tenth of the canvas, on the average: 1 - 0.9 * 0.9
    assert (points.min(0) < 0.64).all() and (points.max(0) > 1.36).all() and abs(np.corrcoef(points.T)[0, 1]) < 0.2
