"""The page's own way from a network's outputs to objects: masks are those that ``MapMasks`` makes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess

import numpy as np
import pytest

from dfine_jax.data.picture.object_masks import MapMasks
from dfine_jax.ops.postprocess import AnswerRules
from dfine_jax.serving.page_files import content

SIZE_PX = (61, 47)
VIEW_PX = (0, -7, 61, 61)  # a letterbox
PROGRAM = """
import { readFileSync } from "node:fs";
const { rules, outputs, size } = JSON.parse(readFileSync(0, "utf8"));
const arrays = {};
for (const [name, { data, dims }] of Object.entries(outputs)) arrays[name] = { data: Float32Array.from(data), dims };
const model = { rules, class_names: ["ant"], category_ids: [7] };
const objects = toObjects(model, arrays, size, 0.5);
console.log(JSON.stringify(objects.map((object) => [object.box, { ...object.alpha, data: [...object.alpha.data] }])));
"""


def objects_of_the_page(rules, **outputs):
    """Box and mask of each object."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js to run the page's code")
    arrays = {name: {"data": value.ravel().tolist(), "dims": value.shape} for name, value in outputs.items()}
    done = subprocess.run(
        [node, "--input-type=module", "-e", content("objects.js").decode() + PROGRAM],
        input=json.dumps({"rules": rules._asdict(), "outputs": arrays, "size": SIZE_PX}),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for box, alpha in json.loads(done.stdout):
        left, top, right, bottom = alpha["box"]
        mask = np.zeros(SIZE_PX[::-1], bool)
        mask[top:bottom, left:right] = np.reshape(alpha["data"], (alpha["height"], alpha["width"]))
        yield box, mask


def pixels_in(box):
    """Those whose indices lie in a box."""
    x, y = np.arange(SIZE_PX[0]), np.arange(SIZE_PX[1])[:, None]
    return (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])


@pytest.mark.parametrize("interpolated", ["probability", "logit"])
@pytest.mark.parametrize("cut", [True, False])
def test_masks_of_the_page(interpolated, cut):
    rng = np.random.default_rng(5)
    corner, side = rng.uniform(-9, 40, (6, 2)), rng.uniform(5, 40, (6, 2))
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    maps = rng.normal(0, 3, (6, 9, 12)).astype(np.float32)
    rules = AnswerRules(cut_to_boxes=cut, clip_boxes=not cut, interpolated=interpolated)
    found = objects_of_the_page(
        rules, labels=np.zeros((1, 6)), scores=np.full((1, 6), 0.9), boxes=boxes[None], masks=maps[None],
        view_px=np.array(VIEW_PX, np.float32),
    )  # fmt: skip
    clipped = boxes if cut else boxes.clip(0, [*SIZE_PX, *SIZE_PX])
    ours = MapMasks(maps, clipped, VIEW_PX, SIZE_PX, 0.5, cut, interpolated)
    for i, (box, mask) in enumerate(found):
        np.testing.assert_allclose(box, clipped[i], atol=1e-5)
        inside = pixels_in(boxes[i]) if cut else True  # the page keeps all pixels that the box touches
        np.testing.assert_array_equal(mask & inside, ours.full(i))
    by_the_other = {"probability": "logit", "logit": "probability"}[interpolated]
    assert (ours.all() != dataclasses.replace(ours, interpolated=by_the_other).all()).sum() > 100
