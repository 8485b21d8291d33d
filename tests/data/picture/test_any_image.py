"""Every way in which a picture comes in gives the same pixels."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from dfine_jax.data.picture import images
from dfine_jax.data.picture.any_image import any_pixels, is_one_picture
from dfine_jax.data.picture.images import image_size, open_rgb, orientation_note, read_image
from dfine_jax.errors import UserError

COLOUR = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
SUFFIXES = ["jpg", "png", "tif", "webp", "mpo", "avif"]


def saved(path, orientation, pixels=COLOUR):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_orientation_is_the_same_for_every_way_in(tmp_path, suffix, orientation):
    path = saved(tmp_path / f"a.{suffix}", orientation)
    content = path.read_bytes()
    expected = read_image(path)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(expected, turned)  # Pillow's own opinion
    assert expected.shape[:2] == ((80, 48) if orientation > 4 else (48, 80))
    loaded = Image.open(path)
    loaded.load()
    with open(path, "rb") as stream:
        stream.read(7)  # a stream is taken from its start, and can be taken again
        ways = [str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), stream, stream]
        ways += [Image.open(path), loaded, loaded.copy(), Image.open(io.BytesIO(content)).convert("RGB"), turned]
        ways += [ImageOps.exif_transpose(Image.open(path))]
        for way in ways:
            assert is_one_picture(way)
            np.testing.assert_array_equal(any_pixels(way), expected)


def test_what_was_turned_by_hand_is_not_turned_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769).update({0xA002: 80, 0xA003: 48})
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    stored = Image.open(tmp_path / "a.png")
    expected = np.rot90(COLOUR, -1)
    np.testing.assert_array_equal(any_pixels(stored), expected)
    np.testing.assert_array_equal(any_pixels(stored.copy()), expected)
    np.testing.assert_array_equal(any_pixels(stored.rotate(-90, expand=True)), expected)


class Tensor:
    """As torch and jax hand out arrays."""

    def __init__(self, array, error=None):
        self.array, self.error = array, error

    def __array__(self, dtype=None, copy=None):
        if self.error:
            raise self.error
        return self.array

    def __iter__(self):
        raise AssertionError("is one picture, not many")


def test_tensors():
    np.testing.assert_array_equal(any_pixels(Tensor(COLOUR)), COLOUR)
    with pytest.raises(UserError, match="Tensor of type float32 and shape .3, 48, 80. is not an image"):
        any_pixels(Tensor(COLOUR.transpose(2, 0, 1).astype(np.float32)))
    with pytest.raises(UserError, match="Tensor cannot become an array .can't convert cuda.*move it to the host"):
        any_pixels(Tensor(COLOUR, TypeError("can't convert cuda:0 device type tensor to numpy")))


@pytest.mark.parametrize("source", [None, 7, 3.5, object(), {"a": 1}, io.StringIO("text"), b"", b"no picture", True])
def test_what_is_no_picture_is_one_error(source):
    with pytest.raises(UserError) as caught:
        any_pixels(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260


def test_pil_images_without_pixels_of_unknown_range_or_closed(tmp_path):
    with pytest.raises(UserError, match="has no pixel"):
        any_pixels(Image.new("RGB", (0, 4)))
    for mode in ("F", "I"):
        with pytest.raises(UserError, match=f"mode {mode} cannot be used .*range is unknown"):
            any_pixels(Image.new(mode, (4, 4)))
    path = saved(tmp_path / "a.png", 1)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot be used"):
        any_pixels(Image.open(path))


def test_large_pictures_need_permission(tmp_path, monkeypatch):
    before = Image.MAX_IMAGE_PIXELS
    path = tmp_path / "wide.png"
    Image.new("1", (15000, 12000)).save(path)
    for read in (open_rgb, image_size):
        with pytest.raises(UserError, match="15000x12000 pixels.*--tile.*DFINE_MAX_MEGAPIXELS=180"):
            read(path)
    monkeypatch.setattr(images, "_MAX_PIXELS", 1000)
    small = saved(tmp_path / "small.png", 6)
    with pytest.raises(UserError, match="80x48 pixels"):
        read_image(small)
    assert read_image(small, any_size=True).shape == (80, 48, 3)
    monkeypatch.setenv("DFINE_MAX_MEGAPIXELS", "1")
    assert read_image(small).shape == (80, 48, 3)
    monkeypatch.setenv("DFINE_MAX_MEGAPIXELS", "many")
    with pytest.raises(UserError, match="DFINE_MAX_MEGAPIXELS=many"):
        read_image(small)
    assert before == Image.MAX_IMAGE_PIXELS


def test_annotations_that_may_be_of_the_turned_picture_are_named(tmp_path):
    square = COLOUR[:, :48]
    assert "orientation 6" in orientation_note(saved(tmp_path / "s.png", 6, square), 48, 48)
    assert "orientation 3" in orientation_note(saved(tmp_path / "t.png", 3), 80, 48)
    assert "orientation 6" in orientation_note(saved(tmp_path / "u.png", 6), 80, 48)
    assert not orientation_note(tmp_path / "u.png", 48, 80)  # the size tells
    assert not orientation_note(saved(tmp_path / "v.png", 1), 80, 48)


@pytest.mark.parametrize("lazy", [lambda content: Image.open(io.BytesIO(content)), io.BytesIO])
def test_threads_may_hand_over_the_same_unread_picture(lazy):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            source = lazy(stream.getvalue())
            for read in pool.map(any_pixels, [source] * 4):
                np.testing.assert_array_equal(read, pixels)
