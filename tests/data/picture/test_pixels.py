"""Pixels of every mode and depth: brightness follows from what is declared, not from the picture's brightest pixel."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.picture import pixels
from dfine_jax.data.picture.images import read_image
from dfine_jax.data.picture.pixels import array_to_rgb, to_rgb
from dfine_jax.errors import UserError

RED = (200, 40, 60)


@pytest.fixture(autouse=True)
def not_told_before(monkeypatch):
    pixels._dark_told.clear()
    monkeypatch.delenv(pixels.BITS_SETTING, raising=False)


def grey(path) -> list[int]:
    return read_image(path)[0, :, 0].tolist()


@pytest.mark.parametrize("brightest", [0, 255, 256, 4095, 65535])
@pytest.mark.parametrize("suffix", ["png", "tif", "jp2"])
def test_sixteen_bits_are_the_high_byte_whatever_the_brightest_pixel(tmp_path, brightest, suffix):
    values = np.array([[0, 100, brightest // 2, brightest]] * 4, np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert grey(tmp_path / f"a.{suffix}") == (values[0] >> 8).tolist()
    np.testing.assert_array_equal(array_to_rgb(values)[..., 1], values >> 8)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(values)))[..., 2], values >> 8)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_byte_orders(mode):
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (2, 1), np.array([0x1234, 0xFE00], order).tobytes())
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0x12, 0xFE]


def test_a_big_endian_tiff_and_a_pgm(tmp_path):
    values = np.array([[0x0102, 0x8040, 0xFF01]], ">u2")
    Image.frombytes("I;16B", (3, 1), values.tobytes()).save(tmp_path / "b.tif")
    assert grey(tmp_path / "b.tif") == [1, 0x80, 0xFF]
    (tmp_path / "full.pgm").write_bytes(b"P5 3 1 65535\n" + values.tobytes())
    assert grey(tmp_path / "full.pgm") == [1, 0x80, 0xFF]
    (tmp_path / "twelve.pgm").write_bytes(b"P5 3 1 4095\n" + np.array([[0, 2048, 4095]], ">u2").tobytes())
    assert grey(tmp_path / "twelve.pgm") == [0, 128, 255]


def test_twelve_bits_declared_by_the_largest_sample(tmp_path):
    values = np.array([[0, 1024, 2048, 4095]], np.uint16)
    Image.fromarray(values).save(tmp_path / "t.tif", tiffinfo={281: 4095})
    assert grey(tmp_path / "t.tif") == [0, 64, 128, 255]
    Image.fromarray(values).save(tmp_path / "t.tif", tiffinfo={281: 3000})  # the brightest pixel: declares nothing
    assert grey(tmp_path / "t.tif") == [0, 4, 8, 15]


def test_tiff_in_which_zero_is_white(tmp_path):
    values = np.array([[0, 4095, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "xray.tif", tiffinfo={262: 0})
    assert grey(tmp_path / "xray.tif") == [255, 240, 0]
    (tmp_path / "xray8.tif").write_bytes(  # 8 bits, which Pillow inverts itself
        tiff([(256, 3, 1, 3), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 0)], bytes([0, 15, 255]))
    )
    assert grey(tmp_path / "xray8.tif") == [255, 240, 0]


def tiff(entries: list[tuple[int, int, int, int]], pixels: bytes) -> bytes:
    """A file of one strip, from (tag, type, count, value)."""
    entries = [*entries, (273, 4, 1, 0), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, len(pixels))]
    start = 8 + 2 + 12 * len(entries) + 4
    table = len(entries).to_bytes(2, "little")
    for tag, kind, count, value in entries:
        table += tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little")
        table += (start if tag == 273 else value).to_bytes(4, "little")
    return b"II*\0" + (8).to_bytes(4, "little") + table + bytes(4) + pixels


def test_twelve_bits_packed(tmp_path):
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF4, 0x00])  # 0x000, 0x800, 0xFFF, 0x400
    entries = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1)]
    (tmp_path / "p.tif").write_bytes(tiff(entries, packed))
    assert grey(tmp_path / "p.tif") == [0, 128, 255, 64]


def test_dark_sixteen_bits_are_told_once_and_the_setting_cures_them(tmp_path, caplog, monkeypatch):
    values = np.array([[0, 2048, 4095]], np.uint16)
    Image.fromarray(values).save(tmp_path / "dark.png")
    with caplog.at_level(logging.WARNING):
        assert grey(tmp_path / "dark.png") == [0, 8, 15]
        assert grey(tmp_path / "dark.png") == [0, 8, 15]
    assert len(caplog.messages) == 1 and "dark.png is nearly black" in caplog.text and "DFINE_BITS=12" in caplog.text
    monkeypatch.setenv("DFINE_BITS", "12")
    assert grey(tmp_path / "dark.png") == [0, 128, 255]
    np.testing.assert_array_equal(array_to_rgb(values)[0, :, 0], [0, 128, 255])
    with pytest.raises(UserError, match="pixel of 5000, more than 12 bits.*DFINE_BITS=12"):
        array_to_rgb(np.array([[5000]], np.uint16))
    monkeypatch.setenv("DFINE_BITS", "twelve")
    with pytest.raises(UserError, match="DFINE_BITS=twelve must be a number of bits from 8 to 16"):
        grey(tmp_path / "dark.png")


def test_dark_colours_of_sixteen_bits_are_told(tmp_path, caplog):
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for name, brightest in (("bright", 65535), ("dark", 4095)):
        row = b"\0" + np.array([0, 300, brightest], ">u2").tobytes()
        header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
        content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / "bright.png").tolist() == [[[0, 1, 255]]]
        assert not caplog.messages
        assert read_image(tmp_path / "dark.png").tolist() == [[[0, 1, 15]]]
    assert "dark.png is nearly black" in caplog.text


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_modes_of_eight_bits(mode):
    from PIL import ImageCms

    colour = Image.new("RGB", (8, 8), RED)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(colour, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
        assert image is not None
    elif mode in ("La", "RGBa"):
        image = colour.convert(mode.replace("a", "A")).convert(mode)
    else:
        image = colour.convert(mode)
    out = to_rgb(image)
    assert out.mode == "RGB"
    luma = Image.new("RGB", (1, 1), RED).convert("L").getpixel((0, 0))
    is_grey = mode in ("1", "L", "LA", "La")
    expected = np.full(3, luma) if is_grey else np.array(RED)
    if mode == "1":
        assert set(np.unique(np.asarray(out))) <= {0, 255}
    else:
        assert np.abs(np.asarray(out)[4, 4].astype(int) - expected).max() <= (25 if mode in ("P", "PA") else 4)


def test_adobe_cmyk_and_cmyk_of_tiff_agree(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "a.tif")
    for name in ("a.jpg", "a.tif"):
        assert np.abs(read_image(tmp_path / name)[4, 4].astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    image = Image.fromarray(np.array([[0, 200]], dtype))
    image.save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif.*range is unknown.*save it with 8"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="range is unknown"):
        to_rgb(image)


def test_arrays_of_every_certain_kind():
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(array_to_rgb(colour), colour)
    np.testing.assert_array_equal(array_to_rgb(np.dstack([colour, colour[..., :1]])), colour)
    for one in (colour[..., 0], colour[..., :1]):
        np.testing.assert_array_equal(array_to_rgb(one), np.repeat(colour[..., :1], 3, 2))
    deep = colour.astype(np.uint16) << 8
    for order in (deep, deep.astype(">u2")):
        np.testing.assert_array_equal(array_to_rgb(order), colour)
    with pytest.raises(UserError, match=r"array.transpose\(1, 2, 0\)"):
        array_to_rgb(colour.transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"list\(array\)"):
        array_to_rgb(colour[None])
    with pytest.raises(UserError, match="no pixel"):
        array_to_rgb(colour[:0])
