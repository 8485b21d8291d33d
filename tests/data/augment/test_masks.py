"""Masks after every operation equal the same operation on a painted picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dfine_jax.config import DataConfig
from dfine_jax.data.augment import geometry, mosaic, transforms
from dfine_jax.data.augment import masks as M  # noqa: N812
from dfine_jax.data.augment.sample import make_sample, sanitize
from dfine_jax.data.load.pipeline import TrainLoader
from dfine_jax.data.read.coco import read_coco, segmentations, with_outlines
from dfine_jax.data.read.layout import find_split
from dfine_jax.data.read.outlines import RunLengths, checked, fills, parse_segmentation
from dfine_jax.data.read.sources import read_dataset
from dfine_jax.data.read.synthetic import make_shapes_dataset, uncompressed_run_lengths
from dfine_jax.errors import UserError

WIDTH, HEIGHT = SIZE = 120, 90
DENSE = DataConfig(augment="dense")
OUTLINE = [20, 15, 80, 20, 90, 60, 40, 75]


def bitmap_of(outline):
    encoded = coco_mask.merge(coco_mask.frPyObjects([outline], HEIGHT, WIDTH))
    return coco_mask.decode(encoded).astype(bool)


def sample_of(outline):
    """One object, painted white, with its box and mask."""
    painted = Image.fromarray(np.repeat(bitmap_of(OUTLINE)[..., None] * np.uint8(255), 3, 2))
    box = np.array([[20, 15, 90, 75]], np.float32)
    return make_sample(painted, box, np.zeros(1, np.int32), M.make_masks([outline], (WIDTH, HEIGHT)))


OUTLINES = {
    "polygon": parse_segmentation([OUTLINE]),
    "run lengths": parse_segmentation(uncompressed_run_lengths(bitmap_of(OUTLINE))),
    "compressed": parse_segmentation(
        {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(np.asfortranarray(bitmap_of(OUTLINE)))["counts"].decode()}
    ),
}


def dense(tile_px):
    """Configuration of mosaics whose tiles have this short side."""
    return DataConfig(augment="dense", height_px=2 * tile_px, width_px=2 * tile_px)


SQUARES = DataConfig(square_crop_prob=1.0, square_crop_short_px=(60,), square_crop_px=(40, 60))


def overlap(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


def drawn(sample, stride=1):
    """Cells of which half or more is covered, of a window that is of whole cells."""
    return M.drawn(sample.masks, *sample.size_px[::-1], stride) >= 2


def agreement(sample, stride=1):
    """IoU of the mask and the painted object in the sample, resized to a common size."""
    size = (sample.size_px[1] // stride, sample.size_px[0] // stride)
    pixels = transforms.render(sample, *sample.size_px[::-1]).resize(size[::-1], Image.Resampling.BOX)
    painted = np.asarray(pixels)[..., 0] > 127
    assert sample.masks is not None
    return overlap(drawn(sample, stride)[0], painted), painted


@pytest.mark.parametrize("kind", OUTLINES)
def test_masks_travel_through_every_operation(kind):
    base = sample_of(OUTLINES[kind])
    assert agreement(base)[0] > 0.97
    flipped = geometry.flip(np.random.default_rng(0), base, 1.0)
    assert agreement(flipped)[0] > 0.97
    zoomed = transforms.zoom_out(np.random.default_rng(1), base, 1.0)
    assert zoomed is not base and agreement(zoomed)[0] > 0.97
    cropped = next(s for s in (transforms.iou_crop(np.random.default_rng(i), base, 1.0) for i in range(9)) if s != base)
    assert cropped.size_px != base.size_px and agreement(cropped)[0] > 0.97
    squares = [transforms.square_crop(np.random.default_rng(i), base, SQUARES) for i in range(9)]
    assert all(min(s.size_px) >= 0.9 * max(s.size_px) for s in squares) and len({s.window_px for s in squares}) > 4
    assert min(agreement(s)[0] for s in squares if len(s.labels) and s.boxes_xyxy_px.any()) > 0.9
    for letterbox in (False, True):
        resized = transforms.resize(flipped, 160, 160, letterbox=letterbox)
        assert agreement(resized)[0] > 0.95
        assert agreement(resized, 4)[0] > 0.85
    warped = geometry.warped(base, mosaic.random_affine(np.random.default_rng(2), SIZE, SIZE, DENSE), SIZE)
    assert agreement(warped)[0] > 0.95
    tiled = mosaic.mosaic(np.random.default_rng(3), [mosaic.tile(base, dense(45))] * 4, DENSE)
    painted = np.asarray(tiled.image)[..., 0] > 127
    assert overlap(drawn(tiled).any(0), painted) > 0.9


FULL = {
    "polygon": parse_segmentation([[-2, -2, 102, -2, 102, 102, -2, 102]]),  # annotated beyond the picture
    "run lengths": parse_segmentation(uncompressed_run_lengths(np.ones((100, 100), bool))),
}


def full_sample(kind, level=255):
    """An object that fills its picture of 100 x 100."""
    image = Image.new("RGB", (100, 100), (level,) * 3)
    box = np.array([[0, 0, 100, 100]], np.float32)
    return make_sample(image, box, np.zeros(1, np.int32), M.make_masks([FULL[kind]], (100, 100)))


@pytest.mark.parametrize("kind", FULL)
def test_what_a_crop_hides_stays_hidden_in_a_letterbox(kind):
    cropped = transforms._cut(full_sample(kind), (25, 0, 75, 100), np.ones(1, bool))
    boxed = transforms.resize(cropped, 64, 64, letterbox=True)
    assert boxed.boxes_xyxy_px.tolist() == [[16, 0, 48, 64]]
    lit = np.asarray(boxed.image)[..., 0] > 127
    assert lit[:, 16:48].all() and lit.sum() == 32 * 64
    np.testing.assert_array_equal(drawn(boxed)[0], lit)
    np.testing.assert_array_equal(drawn(boxed, 4)[0], lit[2::4, 2::4])
    base = transforms.zoom_out(np.random.default_rng(1), full_sample(kind), 1.0)  # as the pipeline: zoom, crop, flip
    left, top = -base.window_px[0], -base.window_px[1]
    part = transforms._cut(base, (left + 50, top - 20, left + 150, top + 20), np.ones(1, bool))
    part = transforms.resize(geometry.flip(np.random.default_rng(1), part, 1.0), 96, 96, letterbox=True)
    painted = np.asarray(part.image)[..., 0] > 127
    assert overlap(drawn(part)[0], painted) > 0.97 and 0.05 * painted.size < painted.sum() < 0.2 * painted.size


@pytest.mark.parametrize("kind", FULL)
def test_what_a_mosaic_hides_stays_hidden_in_a_letterbox(kind):
    magnified = 0
    for seed in range(12):
        tiles = [mosaic.tile(full_sample(kind, 120 + 40 * i), dense(60)) for i in range(4)]
        tiles[1:3] = [transforms._cut(t, (0, 0, 60, 30), np.ones(1, bool)) for t in tiles[1:3]]
        tiles[1:3] = [transforms.resize(t, 30, 60) for t in tiles[1:3]]
        tiles[0] = transforms.resize(tiles[0], 60, 90)  # cells of 90 x 60: a wide canvas has bars
        boxed = transforms.resize(mosaic.mosaic(np.random.default_rng(seed), tiles, DENSE), 96, 96, letterbox=True)
        assert boxed.size_px == (96, 96)
        masks = drawn(boxed)
        assert not masks[:, :16].any() and not masks[:, 80:].any()  # 180 x 120 in 96 x 96: bars of 16 rows
        painted = np.asarray(boxed.image)[..., 0] > 20
        assert overlap(masks.any(0), painted) > 0.88  # seams are thin, and painted is what is not black
        magnified += masks[:, [16, 79]].any()
    assert magnified >= 4  # of them, some reached the edge and beyond


def test_masks_are_dropped_with_their_boxes():
    base = sample_of(OUTLINES["polygon"])
    boxes = np.array([[0, 0, 0.5, 9], [20, 15, 90, 75]], np.float32)
    masks = M.make_masks([None, OUTLINES["polygon"]], (WIDTH, HEIGHT))
    kept = sanitize(make_sample(base.image, boxes, np.arange(2, dtype=np.int32), masks))
    assert kept.labels.tolist() == [1] and kept.masks.outlines == (OUTLINES["polygon"],)
    assert len(kept.masks.affine) == len(kept.masks.visible_xyxy_px) == 1


def test_objects_without_masks_and_several_parts():
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    parts = parse_segmentation([square, [v + 30 for v in square]])
    masks = M.make_masks([None, parts], (WIDTH, HEIGHT))
    full = M.drawn(masks, HEIGHT, WIDTH, 1)
    assert not full[0].any() and (full[1] == 4).sum() == 200 and full[1, 15, 15] and full[1, 45, 45]
    assert masks.exist.tolist() == [False, True]
    for nothing in (None, [], [[1, 2]], "x", {"size": [2, 2]}):
        assert parse_segmentation(nothing) is None
    assert parse_segmentation([[1, 2, 3, 4, 5, 6, 7]]).parts[0].shape == (3, 2)  # an odd number at the end


# --- what is drawn ---------------------------------------------------------------------------------------------------

HOLED = [10, 10, 90, 10, 90, 80, 10, 80, 10, 10, 30, 30, 30, 60, 70, 60, 70, 30, 30, 30]  # a bridge to the hole
CROSSING = [10, 10, 100, 70, 100, 10, 10, 70]
ODD = [12.5, 7.25, 101.75, 19.0, 88.5, 83.5, 40.25, 61.0, 15.75, 77.5]
BEYOND = [-40, -30, 60, -10, 200, 50, 70, 140, -15, 60]


def of_pycocotools(parts, height, width):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width)))


@pytest.mark.parametrize("parts", [[OUTLINE], [HOLED], [CROSSING], [ODD], [BEYOND], [HOLED, CROSSING], [ODD, BEYOND]])
def test_polygons_are_drawn_as_pycocotools_draws_them(parts):
    masks = M.make_masks([parse_segmentation(parts)], (WIDTH, HEIGHT))
    expected = of_pycocotools(parts, HEIGHT, WIDTH)
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(M.drawn(masks, HEIGHT, WIDTH, 1)[0], 4 * expected)
    # Enlarged and shifted, on a larger window, of which only a part is computed.
    masks = M.moved(masks._replace(visible_xyxy_px=np.array([[-1e3, -1e3, 1e3, 1e3]])), (1.5, 2.5), (41, 22))
    placed = [(np.reshape(part, (-1, 2)) * [1.5, 2.5] + [41, 22]).ravel().tolist() for part in parts]
    np.testing.assert_array_equal(M.drawn(masks, 320, 288, 1)[0], 4 * of_pycocotools(placed, 320, 288))


def test_a_hole_and_a_crossing_are_even_odd_within_a_part():
    masks = M.make_masks([parse_segmentation([HOLED]), parse_segmentation([CROSSING])], (WIDTH, HEIGHT))
    holed, crossing = M.drawn(masks, HEIGHT, WIDTH, 1)
    assert holed[20, 20] == 4 and holed[45, 50] == 0 and holed[75, 80] == 4
    assert crossing[40, 15] == 4 and crossing[15, 50] == 0


@pytest.mark.parametrize("encode", [uncompressed_run_lengths, lambda bits: encoded(bits)])
def test_run_lengths_in_place_are_themselves(encode):
    bits = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.4
    bits[:, :7] = bits[60:] = False
    masks = M.make_masks([parse_segmentation(encode(bits))], (WIDTH, HEIGHT))
    np.testing.assert_array_equal(M.drawn(masks, HEIGHT, WIDTH, 1)[0], 4 * bits)
    flipped = M.moved(masks, (-1, 1), (WIDTH, 0))
    np.testing.assert_array_equal(M.drawn(flipped, HEIGHT, WIDTH, 1)[0], 4 * bits[:, ::-1])
    doubled = M.drawn(M.moved(masks, (2, 2), (0, 0)), 2 * HEIGHT, 2 * WIDTH, 2)[0]
    assert ((doubled >= 2) == bits).mean() > 0.9  # noise: the corners of lone pixels are rounded


def encoded(bits):
    mask = coco_mask.encode(np.asfortranarray(bits))
    return {"size": list(bits.shape), "counts": mask["counts"].decode()}


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 16])
def test_quarters_are_what_bilinear_resizing_makes_of_the_drawn_mask(stride):
    import jax

    outlines = [parse_segmentation([HOLED]), parse_segmentation([ODD]), parse_segmentation(encoded(bitmap_of(OUTLINE)))]
    masks = M.moved(M.make_masks(outlines, (WIDTH, HEIGHT)), (2, 2), (0, 0))
    size = 144, 240
    full = M.drawn(masks, *size, 1).astype(np.float32) / 4
    resized = jax.image.resize(full, (3, *(side // stride for side in size)), "linear", antialias=False)
    quarters = M.drawn(masks, *size, stride)
    assert quarters.dtype == np.uint8 and quarters.any((1, 2)).all()
    np.testing.assert_array_equal(quarters / np.float32(4), resized)
    if stride == 4:
        assert set(np.unique(quarters)) == {0, 1, 2, 3, 4}


def test_an_empty_mask_is_a_mask():
    empty = parse_segmentation({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]})
    masks = M.make_masks([empty, None], (WIDTH, HEIGHT))
    assert masks.exist.tolist() == [True, False] and not M.drawn(masks, 88, WIDTH, 4).any()
    aside = M.moved(M.make_masks([OUTLINES["polygon"]], (WIDTH, HEIGHT)), (1, 1), (500, 0))
    assert aside.exist.all() and not M.drawn(aside, 88, WIDTH, 4).any()


# --- outlines that cannot be drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths_are_known_to_fill_their_picture(seed):
    rng = np.random.default_rng(seed)
    bits = rng.random((61, 200)) < rng.random()
    bits[20:40, 50:150] = seed % 2
    counts = encoded(bits)["counts"].encode()
    assert fills(counts, bits.size)
    assert (
        not fills(counts, bits.size + 1) and not fills(counts[:-1], bits.size) and not fills(counts + b"1", bits.size)
    )


@pytest.mark.parametrize("counts", [b"", b"\xff", b"o", b"!", b"o" * 9 + b"0", b"O"])
def test_text_that_is_no_run_lengths(counts):
    assert not fills(counts, 16)


def test_points_far_outside_are_brought_near():
    near = checked(parse_segmentation([[0, 0, 1e9, 0, 1e9, 5, -1e30, 5]]), 10, 8)
    assert near.parts[0].max() == 20 and near.parts[0].min() == -10
    with pytest.raises(ValueError, match="not finite"):
        checked(parse_segmentation([[0, 0, float("inf"), 0, 4, 5]]), 10, 8)


# --- loaders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=9, num_val=1, size_px=96, seed=5)


def batches(dataset, count=3, workers=0, mask_stride=4, **data):
    size = {"height_px": 64, "width_px": 96}
    config = DataConfig(**{"start_augment_epoch": 0, "stop_mosaic_epoch": 9, **size, **data})
    loader = TrainLoader(dataset, config, batch_size=4, seed=0, workers=workers, mask_stride=mask_stride)
    stream = loader.batches()
    out = [next(stream) for _ in range(count)]
    stream.close()
    return out


GRID = {"augment": "dense", "mixup_prob": 1.0}
CENTRE = {"augment": "dense", "mosaic_layout": "random_centre", "mixup_prob": 0.0, "mosaic_shear_deg": 2.0}
_OTHERS = ("flip_vertical", "turn_90", "rotation", "dropout", "brightness", "gamma", "blur", "noise", "grey")
CENTRE |= {f"{name}_prob": 0.3 for name in _OTHERS}


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("data", [GRID, CENTRE])
def test_a_loader_gives_masks_that_fit_the_boxes(shapes, resize, data):
    dataset = read_dataset(shapes, "train")
    seen = 0
    for batch in batches(dataset, 6, resize=resize, **data):
        assert batch.masks.shape == (4, batch.valid.shape[1], 16, 24) and batch.masks.dtype == np.uint8
        assert not batch.masks[~batch.valid].any() and batch.masks.max() == 4
        np.testing.assert_array_equal(batch.has_mask, batch.valid)
        for box, mask in zip(batch.boxes_cxcywh[batch.valid], batch.masks[batch.valid], strict=True):
            if not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
            extent = np.array([columns[0] / 24, rows[0] / 16, (columns[-1] + 1) / 24, (rows[-1] + 1) / 16])
            assert (extent[:2] > low - 0.08).all() and (extent[2:] < high + 0.08).all()
            seen += 1
    assert seen > 60


@pytest.mark.parametrize("data", [{"augment": "standard"}, GRID, CENTRE, CENTRE | {"mosaic_cache": 2}])
def test_masks_change_nothing_else_and_come_through_workers(shapes, data):
    dataset = read_dataset(shapes, "train")
    with_masks = batches(dataset, **data)
    for a, b in zip(with_masks, batches(dataset, mask_stride=None, **data), strict=True):
        assert b.masks is None and b.has_mask is None
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
    for a, b in zip(with_masks, batches(dataset, workers=2, **data), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def changed(root, folder, change):
    """The training split with annotations changed in place."""
    annotations, images = find_split(root, "train")
    content = json.loads(annotations.read_text())
    change(content["annotations"])
    (folder / "changed.json").write_text(json.dumps(content))
    return read_coco(folder / "changed.json", images)


def test_an_object_without_a_mask_is_not_one_with_an_empty_mask(shapes, tmp_path):
    plain = {"augment": "none", "count": 1}

    def change(annotations):
        for number, entry in enumerate(annotations):
            if number % 3 == 0:
                entry["segmentation"] = []
            elif number % 3 == 1:
                entry["segmentation"] = {"size": [96, 96], "counts": [96 * 96]}
            entry["iscrowd"] = int(number == 5)

    dataset = changed(shapes, tmp_path, change)
    assert dataset.changes.crowd == 1
    (batch,) = batches(dataset, **plain)
    has, some = batch.has_mask, batch.masks.any((2, 3))
    assert not has[~batch.valid].any() and (batch.valid & ~has).any()
    assert (has & ~some).any() and (has & some).any() and not (some & ~has).any()


@pytest.mark.parametrize(
    ("segmentation", "cause"),
    [
        ({"size": [96, 96], "counts": [1, 2]}, "does not fill"),
        ({"size": [96, 96], "counts": "0PPPP0"}, "does not fill"),
        ({"size": [96, 96], "counts": [1, -2]}, "out of bounds"),
        ({"size": [90, 96], "counts": [90 * 96]}, "is 96x90, its picture 96x96"),
        ({"size": "large", "counts": [5]}, "cannot be used"),
        ([[1, 2, "a", 4, 5, 6]], "could not convert"),
    ],
)
def test_masks_that_cannot_be_drawn_are_told_and_repaired(shapes, tmp_path, segmentation, cause):
    from dfine_jax.cli import main

    dataset = changed(shapes, tmp_path, lambda annotations: annotations[4].update(segmentation=segmentation))
    with pytest.raises(UserError, match="mask of annotation 5 in .*--repair OUT cures it") as caught:
        batches(dataset)
    assert cause in str(caught.value)
    assert len(batches(dataset, mask_stride=None)) == 3  # who needs no masks reads none
    folder, repaired = tmp_path / "set", tmp_path / "repaired"
    (folder / "train").mkdir(parents=True)
    for picture in dataset.records:
        (folder / "train" / picture.path.name).write_bytes(picture.path.read_bytes())
    (tmp_path / "changed.json").rename(folder / "train" / "_annotations.coco.json")
    assert main(["check", "--data", str(folder), "--repair", str(repaired)]) == 0
    (batch,) = batches(read_dataset(repaired, "train"), 1)
    assert batch.has_mask.any()


def test_every_object_of_the_set_has_a_mask(shapes):
    dataset = with_outlines(read_dataset(shapes, "train"))
    assert all(outline is not None for record in dataset.records for outline in record.outlines)
    assert any(isinstance(outline, RunLengths) for record in dataset.records for outline in record.outlines)
    assert len(list(segmentations(dataset))) == sum(len(record.outlines) for record in dataset.records)
    with pytest.raises(ValueError, match="masks at 1/5"):
        batches(dataset, mask_stride=5)
