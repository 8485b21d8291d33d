"""Close-ups: what they show, and lines that can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.picture.draw_compared import ANNOTATED, DETECTED, Traced, box_ring, close_up, view

GREY = (90, 90, 90)


def share(picture, colour):
    return float((np.asarray(picture) == colour).all(-1).mean())


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((100, 100, 140, 130), (640, 480)),
        ((0, 0, 5, 5), (640, 480)),
        ((630, 470, 640, 480), (640, 480)),
        ((-50, -50, 900, 900), (640, 480)),
        ((10, 10, 10, 10), (640, 480)),
        ((700, 500, 720, 520), (640, 480)),  # annotated outside of its picture
        ((2, 2, 6, 30), (8, 3000)),
        ((0, 0, 1, 1), (1, 1)),
    ],
)
def test_a_view_lies_in_the_picture_and_shows_the_box(box, size):
    left, top, right, bottom = view(np.array(box, float), size)
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    inside = np.clip(box, 0, np.tile(size, 2))
    assert left <= inside[0] and top <= inside[1] and right >= inside[2] and bottom >= inside[3]
    assert max(close_up(Image.new("RGB", size), np.array(box, float), [], []).size) <= 640


def test_small_boxes_are_enlarged_with_what_is_around():
    image = Image.new("RGB", (4000, 3000), GREY)
    left, top, right, bottom = view(np.array([2000.0, 1500, 2010, 1510]), image.size)
    assert (right - left, bottom - top) == (800, 600)
    assert close_up(image, np.array([2000.0, 1500, 2010, 1510]), [], []).size == (640, 480)


def test_annotations_are_dashed_and_detections_full():
    image = Image.new("RGB", (640, 480), GREY)
    box = np.array([160.0, 120, 480, 360])
    ring = Traced([box_ring(box, image.size)], True)
    full, dashed = share(close_up(image, box, [], [ring]), DETECTED), share(close_up(image, box, [ring], []), ANNOTATED)
    assert full > 0 and 0.4 < dashed / full < 0.6
    both = close_up(image, box, [ring], [ring])
    assert share(both, ANNOTATED) == dashed and 0.3 < share(both, DETECTED) / full < 0.6


def test_the_suspect_is_thicker_than_the_rest():
    image = Image.new("RGB", (640, 480), GREY)
    box = np.array([160.0, 120, 480, 360])
    thin, thick = (
        share(close_up(image, box, [], [Traced([box_ring(box, image.size)], chosen)]), DETECTED)
        for chosen in (False, True)
    )
    assert thick > 2 * thin > 0


def test_a_picture_stays_as_it_was():
    image = Image.new("L", (100, 80), 7)
    close_up(image, np.array([0.0, 0, 50, 50]), [Traced([box_ring(np.array([0.0, 0, 50, 50]), image.size)])], [])
    assert image.mode == "L" and image.getextrema() == (7, 7)
