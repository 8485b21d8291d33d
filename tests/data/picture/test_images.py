from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dfine_jax.data.load.pipeline import EvalLoader
from dfine_jax.data.picture.images import Preprocess, open_annotated, read_image
from dfine_jax.data.read.coco import read_coco
from dfine_jax.data.read.layout import find_split
from dfine_jax.errors import UserError

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_rgb_pixels_are_returned_as_stored(tmp_path):
    image = read_image(save(tmp_path / "a.png", Image.fromarray(COLOUR)))
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, COLOUR)


def test_grey_and_alpha_and_palette(tmp_path):
    grey = Image.fromarray(COLOUR[..., 0])
    np.testing.assert_array_equal(read_image(save(tmp_path / "l.png", grey)), np.repeat(COLOUR[..., :1], 3, -1))
    rgba = Image.fromarray(np.dstack([COLOUR, np.full((6, 9), 7, np.uint8)]))
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", rgba)), COLOUR)
    palette = Image.fromarray(COLOUR).quantize(8)
    expected = np.asarray(palette.convert("RGB"))
    stored = save(tmp_path / "p.png", palette, transparency=bytes([0, 255, 128]))
    np.testing.assert_array_equal(read_image(stored), expected)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = save(tmp_path / "c.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    red = read_image(path).reshape(-1, 3).mean(0)
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    image = read_image(save(tmp_path / "16.png", Image.fromarray(values)))
    np.testing.assert_array_equal(image[..., 0], [[0, 1, 128, 255]])


def test_float_pixels_are_refused(tmp_path):
    path = save(tmp_path / "f.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(UserError, match="f.tif.*floating point"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xe0 garbage"])
def test_no_picture_is_a_clear_error(tmp_path, content):
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(UserError, match="bad.jpg"):
        read_image(tmp_path / "bad.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_file_is_a_clear_error(tmp_path, suffix):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"cut.{suffix}.*cannot be decoded"):
        read_image(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no.jpg does not exist"):
        read_image(tmp_path / "no.jpg")
    with pytest.raises(UserError, match="is not a file"):
        read_image(tmp_path)


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(path, Image.fromarray(COLOUR), exif=exif)


def test_exif_orientation_is_applied_for_people_not_for_annotations(tmp_path):
    path = rotated(tmp_path / "r.png")
    np.testing.assert_array_equal(read_image(path), np.rot90(COLOUR, -1))
    np.testing.assert_array_equal(read_image(path, apply_exif=False), COLOUR)
    np.testing.assert_array_equal(np.asarray(open_annotated(path, 9, 6)), COLOUR)


def test_annotations_of_the_upright_picture_get_the_upright_picture(tmp_path):
    path = rotated(tmp_path / "r.png")
    np.testing.assert_array_equal(np.asarray(open_annotated(path, 6, 9)), np.rot90(COLOUR, -1))


def test_annotated_size_must_fit(tmp_path):
    path = save(tmp_path / "s.png", Image.fromarray(COLOUR))
    for width, height in ((6, 9), (90, 60)):
        with pytest.raises(UserError, match=f"9x6 pixels.*{width}x{height}"):
            open_annotated(path, width, height)


def test_preprocess_is_pillow_bilinear_and_survives_json():
    spec = Preprocess(height_px=5, width_px=4)
    expected = np.asarray(Image.fromarray(COLOUR).resize((4, 5), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(spec(COLOUR), expected)
    np.testing.assert_array_equal(spec(Image.fromarray(COLOUR)), expected)
    assert Preprocess.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("size", [(64, 20), (20, 64), (300, 40), (41, 501), (33, 17)])
def test_a_letterbox_with_a_grey_border_that_does_not_enlarge(size):
    """As dfine-seg evaluates: its gain and its padding, which rounds halves downwards, in NumPy."""
    spec = Preprocess(64, 48, "letterbox", border=114, enlarge=False)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    gain = min(64 / size[1], 48 / size[0], 1.0)
    inner = int(np.round(size[0] * gain)), int(np.round(size[1] * gain))
    left, top = (int(np.round((outer - side) / 2 - 0.1)) for outer, side in zip((48, 64), inner, strict=True))
    expected = np.full((64, 48, 3), 114, np.uint8)
    shown = Image.fromarray(pixels).resize(inner, Image.Resampling.BILINEAR)
    expected[top : top + inner[1], left : left + inner[0]] = np.asarray(shown)
    np.testing.assert_array_equal(spec(pixels), expected)
    if gain == 1:
        np.testing.assert_array_equal(shown, pixels)
    across, down = size[0] / inner[0], size[1] / inner[1]
    assert spec.view_px(size) == (-left * across, -top * down, 48 * across, 64 * down)
    assert Preprocess.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_descriptions_without_a_border_are_those_of_a_black_one():
    spec = Preprocess(5, 4, "letterbox")
    stored = {"height_px": 5, "width_px": 4, "resize": "letterbox", "interpolation": "bilinear_antialias",
              "channels": "RGB", "scale": 1 / 255}  # fmt: skip
    assert spec.to_dict() == stored and Preprocess.from_dict(stored) == spec == Preprocess(5, 4, "letterbox", border=0)
    assert Preprocess(5, 4, "letterbox", border=114).to_dict() == stored | {"border": 114}
    for wrong in ({"border": 256}, {"border": -1}, {"border": 1.5}, {"enlarge": "no"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* must be"):
            Preprocess.from_dict({**stored, **wrong})
    with pytest.raises(UserError, match="keys"):
        Preprocess.from_dict({name: value for name, value in stored.items() if name != "scale"})


def test_preprocess_refuses_what_it_does_not_execute():
    spec = Preprocess(5, 4).to_dict()
    with pytest.raises(UserError, match="crop"):
        Preprocess.from_dict({**spec, "resize": "crop"})
    with pytest.raises(UserError, match="keys"):
        Preprocess.from_dict({**spec, "mean": 0.5})
    with pytest.raises(UserError, match="uint8"):
        Preprocess(5, 4)(COLOUR.astype(np.float32))


def test_real_photographs_from_their_files_to_batches(cells):
    """The pixels of evaluation are Pillow's, and the boxes of the records are those of the file."""
    dataset = read_coco(*find_split(cells, "val"))
    (batch,) = EvalLoader(dataset, Preprocess(224, 320), batch_size=2)
    assert len(dataset) == 2 and batch.size_px.tolist() == [[640, 480]] * 2
    for record, image in zip(dataset.records, batch.images, strict=True):
        with Image.open(record.path) as picture:
            assert picture.format == "JPEG"
            shown = picture.convert("RGB").resize((320, 224), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(shown))
        np.testing.assert_array_equal(Preprocess(224, 320)(read_image(record.path)), image)
        assert (record.boxes_xyxy_px >= 0).all() and (record.boxes_xyxy_px[:, 2:] <= (640, 480)).all()
