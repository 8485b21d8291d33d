"""Reference numbers of RF-DETR's criterion: what ``rfdetr`` 1.11.2 makes of given outputs, objects and points."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from golden_train import pad_targets

from dfine_jax.families.rfdetr.config import RFDetrConfig
from dfine_jax.families.rfdetr.outputs import GroupedOutput
from dfine_jax.families.rfdetr.variants import VARIANTS
from dfine_jax.ops.postprocess import Answer
from dfine_jax.typing import HeadOutput, ModelOutput, StageOutput, Targets

GROUPS = 3
INPUTS = ("logits", "boxes", "embedding", "pixels", "bias")


class FixedPoints(NamedTuple):
    """A ``losses.points.PointSource``. In slots without an object points mean nothing."""

    costs: Any  # [s, n, 2]
    terms: Any  # [s, b, groups, g, n, 2]

    def of_costs(self, output, count, dtype):
        """Of an output."""
        points = jnp.asarray(self.costs, dtype)
        assert points.shape[1] == count
        return points[output]

    def of_terms(self, output, slots, lead, count, dtype):
        """Of some slots of an output."""
        points = jnp.asarray(self.terms, dtype)
        assert (points.shape[1:3], points.shape[-2]) == (lead, count)
        return points[output][:, :, jnp.minimum(slots, points.shape[3] - 1)]


def drawn(call: int, shape: Sequence[int]) -> np.ndarray:
    """What the reference's random generator was replaced by."""
    return np.random.RandomState(9000 + call).random_sample(tuple(shape)).astype(np.float32)


def fixed_points(calls: Sequence[Sequence[int]], match: np.ndarray, groups: int, slots: int) -> FixedPoints:
    """The points of a reference's step, whose pairs are sorted by image and query.

    Args:
      calls: shapes of the arrays that it drew: points of the costs of the last layer, the others and the proposals,
        then for each of these two arrays of the terms.
      match: our pairs, of the layers in their order and of the proposals.
    """
    outputs, images, queries = match.shape
    order = [*range(1, outputs - 1), 0, outputs - 1]  # the reference's number of each of our outputs
    arrays = [drawn(*call) for call in enumerate(calls)]
    costs = np.stack([arrays[i][0] for i in order])
    pairs = [np.concatenate(arrays[outputs + 2 * i : outputs + 2 * i + 2], 1) for i in order]
    terms = np.zeros((outputs, images, groups, slots, *pairs[0].shape[1:]), np.float32)
    for output, image in np.ndindex(outputs, images):
        before = np.sum(match[output, :image] >= 0)
        for i, query in enumerate(np.flatnonzero(match[output, image] >= 0)):
            place = (output, image, query // (queries // groups), match[output, image, query])
            terms[place] = pairs[output][before + i]
    return FixedPoints(costs, terms)


def places(layers: int) -> list[str]:
    """Names of the outputs in our order."""
    return [*(f"aux_{i}" for i in range(layers - 1)), "last", "enc_0"]


def slots_of(match: np.ndarray, queries: int) -> np.ndarray:
    """Pairs (query, object) of an image as the slot of every query."""
    slots = np.full(queries, -1, np.int32)
    slots[match[0]] = match[1]
    return slots


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of the criterion alone, with or without masks."""

    arrays: Mapping[str, np.ndarray]
    masks: bool

    @classmethod
    def read(cls, file: Path, masks: bool) -> Case:
        """From ``criterion_rfdetr.npz``."""
        with np.load(file) as arrays:
            return cls(dict(arrays), masks)

    @property
    def info(self) -> dict[str, Any]:
        """Weighted terms, their sum, shapes of the points."""
        return json.loads(self.arrays["info"].tobytes())["with_masks" if self.masks else "without"]

    @property
    def model(self) -> RFDetrConfig:
        """Of the outputs."""
        layers, queries, classes = (self.arrays["logits"].shape[i] for i in (0, 2, 3))
        base = VARIANTS["seg-nano" if self.masks else "nano"]
        return dataclasses.replace(
            base, decoder_layers=layers - 1, groups=GROUPS, num_queries=queries // GROUPS, num_classes=classes - 1
        )

    def reference(self, name: str) -> np.ndarray:
        """An array that depends on whether masks are trained."""
        return self.arrays[("masks_" if self.masks else "") + name]

    def inputs(self, dtype: Any = np.float32) -> tuple[Any, ...]:
        """Arrays that gradients are of."""
        return tuple(jnp.asarray(self.arrays[name], dtype) for name in INPUTS[: 5 if self.masks else 2])

    def output(self, inputs: Sequence[Any]) -> ModelOutput:
        """What a network would have handed over."""
        return output_of(inputs, GROUPS)

    def targets(self, slots: int, dtype: Any = np.float32) -> Targets:
        """Objects."""
        names = [f"{i}" for i in range(3)]
        labels, boxes, masks = (
            [self.arrays[f"target_{kind}_{i}"] for i in names] for kind in ("labels", "boxes", "masks")
        )
        targets = pad_targets(labels, boxes, slots, dtype)
        if not self.masks:
            return targets
        quarters = np.zeros((*targets.labels.shape, *masks[0].shape[1:]), np.uint8)
        for image, of_image in enumerate(masks):
            quarters[image, : len(of_image)] = 4 * of_image
        return dataclasses.replace(targets, masks=jnp.asarray(quarters), has_mask=targets.valid)

    def match(self) -> np.ndarray:
        """The reference's pairs, as ours."""
        outputs, images, queries = self.arrays["logits"].shape[:3]
        return np.stack(
            [
                [slots_of(self.reference(f"match_{where}_{image}"), queries) for image in range(images)]
                for where in places(outputs - 1)
            ]
        )

    def points(self, slots: int) -> FixedPoints | None:
        """Those that the reference drew."""
        return fixed_points(self.info["rand_calls"], self.match(), GROUPS, slots) if self.masks else None


def output_of(inputs: Sequence[Any], groups: int) -> ModelOutput:
    """Of stacked layers and proposals: logits, boxes and, of masks, embeddings, pixels and the bias."""
    logits, boxes, *masks = inputs
    stages = StageOutput(logits[:-1], boxes[:-1])
    training = GroupedOutput(stages, HeadOutput(logits[-1], boxes[-1]))
    if masks:
        embedding, pixels, bias = masks
        training = GroupedOutput(
            dataclasses.replace(stages, mask_embedding=embedding[:-1]), training.encoder, embedding[-1], pixels, bias
        )
    each = logits.shape[2] // groups
    return ModelOutput(Answer(logits[-2, :, :each, :-1], boxes[-2, :, :each]), None, training)
