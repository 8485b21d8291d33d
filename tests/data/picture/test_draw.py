"""Pictures: frames where the boxes are, labels inside the picture, colours that can be told apart."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

from dfine_jax.data.picture import draw
from dfine_jax.data.picture.object_masks import MapMasks, RunMasks
from dfine_jax.errors import UserError

GREY = (90, 90, 90)


def test_frame_lies_on_the_box_in_the_colour_of_the_class():
    image = Image.new("RGB", (640, 480), GREY)
    out = draw.draw_boxes(image, np.array([[100.0, 150, 400, 300]]), np.array([3]), ["cat"], np.array([0.9]))
    pixels = np.asarray(out)
    colour = draw.class_colour(3)
    for x, y in [(100, 200), (400, 200), (250, 300), (350, 150)]:
        assert tuple(pixels[y, x]) == colour
    assert tuple(pixels[225, 250]) == GREY  # the inside stays visible
    assert np.asarray(image).max() == 90  # the input is left alone


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 67), (400, 268)), ((320, 20), (320, 20)), ((4000, 300), (4000, 300))]
)
def test_only_tiny_pictures_are_enlarged(size, expected):
    what = Image.new("L", size), np.array([[1.0, 1, 30, 15]]), np.array([0]), ["a"], np.array([0.5])
    out = draw.draw_boxes(*what, enlarge=True)
    assert out.size == expected
    assert draw.draw_boxes(*what).size == size
    assert out.mode == "RGB"


def shared_px(a, b) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def test_labels_stay_inside_and_apart():
    rng = np.random.default_rng(0)
    placed = []
    for _ in range(200):
        x, y = rng.uniform(-50, 640), rng.uniform(-50, 480)
        rect = draw._place((90, 17), (x, y, x + rng.uniform(1, 300), y + rng.uniform(1, 300)), (640, 480), placed)
        if rect is None:
            continue
        assert 0 <= rect[0] <= rect[2] < 640
        assert 0 <= rect[1] <= rect[3] < 480
        covered = sum(shared_px(rect, other) for other in placed)
        assert covered <= 0.3 * 90 * 17
        placed.append(rect)
    assert 30 < len(placed) < 200  # crowded: some are shown, some are left out


def test_first_choice_is_above_the_box_and_inside_at_the_upper_edge():
    assert draw._place((50, 10), (100, 100, 200, 200), (640, 480), []) == (100, 90, 149, 99)
    assert draw._place((50, 10), (100, 2, 200, 200), (640, 480), []) == (100, 2, 149, 11)


def test_long_names_are_cut_but_keep_their_score():
    font = draw.label_font(12, "abc", None)
    text = draw._shorten("a very long name " * 20, " 0.75", font, 150)
    assert text.endswith("… 0.75")
    assert font.getlength(text) <= 150
    assert draw._shorten("cat", " 0.75", font, 150) == "cat 0.75"


def test_characters_without_a_glyph_become_base_letters():
    builtin = draw.ImageFont.load_default(12)
    assert draw.writable(builtin, "Bär 中") == "Bar ?"


def test_boxes_outside_degenerate_or_not_finite_are_left_out():
    image = Image.new("RGB", (400, 300), GREY)
    boxes = np.array([[-50.0, -50, -10, -10], [500, 10, 600, 20], [50, 50, 40, 60], [np.nan, 0, 10, 10]])
    out = draw.draw_boxes(image, boxes, np.zeros(4, int), ["x"] * 4, np.full(4, 0.9))
    assert np.array_equal(np.asarray(out), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (5, 4000), (8000, 6000)])
def test_any_size_can_be_drawn_on(size):
    width, height = size
    boxes = np.array([[0.0, 0, width, height], [width / 3, height / 3, width, height]])
    out = draw.draw_boxes(Image.new("RGB", size, GREY), boxes, np.array([0, 1]), ["a", "bb"], np.array([0.9, 0.8]))
    assert (np.asarray(out) != 90).any()


def test_a_missing_font_and_a_file_that_is_no_font(tmp_path):
    with pytest.raises(UserError, match=r"font none\.ttf does not exist; give a TrueType"):
        draw.check_font("none.ttf")
    text = tmp_path / "a.ttf"
    text.write_text("no font")
    with pytest.raises(UserError, match="a.ttf cannot be read as a font; give a TrueType"):
        draw.check_font(str(text))
    with pytest.raises(UserError, match=r"none\.ttf"):
        draw.draw_boxes(
            Image.new("RGB", (400, 300)), np.array([[9.0, 9, 99, 99]]), np.array([0]), ["a"], font_file="none.ttf"
        )


def test_a_video_frame_is_drawn_faster_than_it_is_shown():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 900, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 300, (60, 2))], 1)
    frame = Image.new("RGB", (1280, 720), GREY)
    labels = rng.integers(0, 80, 60)
    names = [f"class number {i}" for i in labels]

    def seconds() -> float:
        start = time.process_time()
        draw.draw_boxes(frame, boxes, labels, names, rng.uniform(0.3, 1, 60))
        return time.process_time() - start

    seconds()
    assert min(seconds() for _ in range(5)) < 0.1  # about 0.02; 0.4 when glyphs were looked up for every label


def run_masks(*masks):
    counts = tuple(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in masks)
    return RunMasks(counts, masks[0].shape[::-1])


def test_masks_are_tinted_outlined_and_nothing_else_is_touched():
    large, small = np.zeros((2, 480, 640), bool)
    large[100:400, 100:500] = True
    small[200:260, 200:260] = True  # in front of it, though its score is lower
    image = Image.new("RGB", (640, 480), GREY)
    boxes = np.array([[100.0, 100, 500, 400], [200, 200, 260, 260]])
    out = draw.draw_boxes(image, boxes, np.array([1, 4]), ["", ""], np.array([0.9, 0.5]), None, run_masks(large, small))
    pixels = np.asarray(out).astype(int)
    line = draw.style_for(640, 480, 2).line
    for label, (y, x) in ((1, (350, 300)), (4, (230, 230))):
        colour = np.array(draw.class_colour(label))
        assert abs(pixels[y, x] - (0.55 * 90 + 0.45 * colour)).max() <= 1
        mask = (None, large, None, None, small)[label]
        rim = mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), line, border_value=0)
        rim[:130] = False  # the labels
        assert (pixels[rim & ~(small if label == 1 else 0 * small).astype(bool)] == colour).all(-1).mean() > 0.95
    outside = ~large
    outside[:110], outside[399:402], outside[:, 99:102], outside[:, 499:502] = False, False, False, False
    assert (pixels[outside] == 90).all()
    assert np.asarray(image).max() == 90


def test_masks_of_enlarged_pictures_grow_with_them():
    mask = np.zeros((50, 80), bool)
    mask[10:40, 20:60] = np.tri(30, 40, dtype=bool)
    image, boxes = Image.new("RGB", (80, 50), GREY), np.array([[20.0, 10, 60, 40]])
    what = image, boxes, np.array([0]), ["a"], np.array([0.9])
    out = np.asarray(draw.draw_boxes(*what, masks=run_masks(mask), enlarge=True))
    plain = np.asarray(draw.draw_boxes(*what, enlarge=True))
    assert out.shape == plain.shape == (200, 320, 3)
    inside = np.kron(ndimage.binary_erosion(mask, np.ones((3, 3)), 2), np.ones((4, 4))).astype(bool)
    inside[:60] = False
    assert (out != GREY)[inside].any(-1).all()
    around = ~np.kron(mask, np.ones((4, 4))).astype(bool)
    around[:, :81], around[:, 240:], around[:41], around[160:] = False, False, False, False  # inside the frame
    assert around.any()
    assert (out[around] == GREY).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3), (4000, 30)])
def test_masks_at_any_size(size):
    mask = np.ones(size[::-1], bool)
    boxes, labels = np.array([[0.0, 0, *size]] * 2), np.array([0, 1])
    out = draw.draw_boxes(
        Image.new("RGB", size, GREY), boxes, labels, ["a", "b"], None, None, run_masks(mask, 0 * mask)
    )
    assert (np.asarray(out) != GREY).any()


def test_masks_of_a_large_picture_are_drawn_fast():
    rng = np.random.default_rng(0)
    size, cells = (4000, 3000), (np.arange(160) + 0.5) / 160
    centre, radius = rng.uniform(0.1, 0.9, (100, 2)), rng.uniform(0.01, 0.1, (100, 2))
    across, down = ((cells - centre[:, i : i + 1]) / radius[:, i : i + 1] for i in range(2))
    boxes = np.concatenate([centre - radius, centre + radius], 1) * np.tile(size, 2)
    maps = (5 * (1 - across[:, None] ** 2 - down[..., None] ** 2)).clip(-20, 20).astype(np.float32)
    masks, labels = MapMasks(maps, boxes, (0, 0, *size), size), np.arange(100) % 5
    image = Image.new("RGB", size, GREY)
    started = time.process_time()
    draw.draw_boxes(image, boxes, labels, ["cell"] * 100, np.full(100, 0.9), None, masks)
    assert time.process_time() - started < 3  # a quarter of a second is usual


def test_no_boxes():
    image = Image.new("RGB", (400, 300), GREY)
    out = draw.draw_boxes(image, np.zeros((0, 4)), np.zeros(0, int), [], np.zeros(0))
    assert np.array_equal(np.asarray(out), np.asarray(image))


def test_colours_are_steady_and_distinct():
    colours = [draw.class_colour(i) for i in range(80)]
    assert len(set(colours)) == 80
    first = np.array(colours[:8], float)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(first, 2)) > 50


def test_text_contrast_is_at_least_three_to_one():
    def luminance(rgb):
        c = np.array(rgb) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for label in range(300):
        colour = draw.class_colour(label)
        low, high = sorted((luminance(colour), luminance(draw.text_colour(colour))))
        assert (high + 0.05) / (low + 0.05) >= 3.0


def test_letters_and_lines_grow_with_the_picture():
    small, medium, large = (draw.style_for(s, s) for s in (320, 640, 4000))
    assert small.font < medium.font < large.font
    assert 1 <= small.line <= medium.line < large.line
    assert draw.style_for(640, 640, 40).font < medium.font
