"""Contrastive denoising queries: noised ground truth prepended to the queries (reference: src/zoo/dfine/denoising.py).

The reference builds G = max(1, num_denoising // m) groups of 2m queries, m being the largest object count of the batch,
so its shapes change with the data. Here the number of slots is constant and the group, sign and object of each slot are
computed from the traced m; slots beyond 2mG exist for nobody.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dfine_jax.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from dfine_jax.typing import DenoisingQueries, Targets

_CENTRE = (0.5, 0.5, 0.1, 0.1)  # cxcywh of the padding queries of a batch without objects


class DenoisingNoise(NamedTuple):
    """Random draws, one per slot, in the order in which the reference draws them."""

    label_mask: Float[Array, "b u"]  # [0, 1): the label is replaced below 0.5 * label_noise_ratio
    new_label: Int[Array, "b u"]  # 0..k-1
    sign: Int[Array, "b u 4"]  # 0 or 1
    magnitude: Float[Array, "b u 4"]  # [0, 1); negative queries add 1


def num_slots(num_gt_slots: int, num_denoising: int) -> int:
    """Slots that hold the denoising queries of every batch with at most ``num_gt_slots`` objects per image."""
    if num_gt_slots == 0 or num_denoising == 0:
        return 0
    return 2 * max(num_gt_slots, num_denoising)


def sample_noise(key: Key[Array, ""], batch: int, slots: int, num_classes: int) -> DenoisingNoise:
    """Independent draws for ``slots`` queries of ``batch`` images."""
    mask_key, label_key, sign_key, magnitude_key = jax.random.split(key, 4)
    return DenoisingNoise(
        label_mask=jax.random.uniform(mask_key, (batch, slots)),
        new_label=jax.random.randint(label_key, (batch, slots), 0, num_classes),
        sign=jax.random.randint(sign_key, (batch, slots, 4), 0, 2),
        magnitude=jax.random.uniform(magnitude_key, (batch, slots, 4)),
    )


def draw_denoising(
    key: Key[Array, ""],
    targets: Targets,
    num_classes: int,
    num_denoising: int,
    label_noise_ratio: float,
    box_noise_scale: float,
    *,
    unfold: bool = True,
    without_objects: bool = False,
) -> DenoisingQueries | None:
    """Noised copies of the ground truth for one step, or None when there are to be none.

    Args:
      unfold, without_objects: as in ``make_denoising_queries``.
    """
    batch, objects = targets.valid.shape
    slots = num_slots(objects, num_denoising)
    if slots == 0:
        return None
    return make_denoising_queries(
        targets,
        sample_noise(key, batch, slots, num_classes),
        num_classes,
        num_denoising,
        label_noise_ratio,
        box_noise_scale,
        unfold=unfold,
        without_objects=without_objects,
    )


def make_denoising_queries(
    targets: Targets,
    noise: DenoisingNoise,
    num_classes: int,
    num_denoising: int,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
    *,
    unfold: bool = True,
    without_objects: bool = False,
) -> DenoisingQueries:
    """Positive and negative noised copies of the objects of a batch.

    A group is m positive slots followed by m negative ones; an image with fewer than m objects leaves padding slots
    (label ``num_classes``, box zero) which take part in attention and count as background, as in the reference. The
    reference ignores its own ``box_noise_scale`` and always uses 1.0, the default here.

    Args:
      unfold: a box that noise turns inside out becomes its mirror image, in D-FINE and DEIM; RT-DETRv2 leaves its
        negative sides, which the logit takes for zero.
      without_objects: a batch without objects gets one group of two padding queries around the centre of the image, in
        RT-DETRv2; otherwise none.

    Raises:
      ValueError: the slots of ``noise`` cannot hold the groups of every possible batch.
    """
    slots, num_gt = noise.label_mask.shape[1], targets.valid.shape[1]
    if slots < num_slots(num_gt, num_denoising) or slots == 0:
        needed = num_slots(num_gt, num_denoising)
        raise ValueError(f"{slots} denoising slots for {num_gt} object slots; num_slots asks for {needed} (at least 1)")
    most = jnp.max(jnp.sum(targets.valid, -1))  # m
    width = jnp.maximum(most, 1)
    num_groups = jnp.where(most > 0, jnp.maximum(num_denoising // width, 1), int(without_objects))

    slot = jnp.arange(slots)
    group, place = slot // (2 * width), slot % (2 * width)
    negative = place >= width
    exists = slot < 2 * width * num_groups
    rank = place % width  # the slot's object is the rank-th valid one
    order = jnp.argsort(~targets.valid, axis=-1, stable=True)  # [b, g], valid slots first
    rank_in_range = jnp.minimum(rank, num_gt - 1)
    index = order[:, rank_in_range]  # [b, u]
    filled = exists & (rank < jnp.sum(targets.valid, -1, keepdims=True))  # [b, u]

    labels = jnp.take_along_axis(targets.labels, index, 1)
    labels = jnp.where(noise.label_mask < 0.5 * label_noise_ratio, noise.new_label.astype(labels.dtype), labels)
    boxes = jnp.take_along_axis(targets.boxes_cxcywh, index[..., None], 1)
    padding = jnp.where(most > 0, 0.0, jnp.asarray(_CENTRE)).astype(boxes.dtype)
    boxes = _noised_boxes(jnp.where(filled[..., None], boxes, padding), noise, negative, box_noise_scale)
    boxes = jnp.concatenate([boxes[..., :2], jnp.abs(boxes[..., 2:])], -1) if unfold else boxes
    return DenoisingQueries(
        labels=jnp.where(filled, labels, num_classes),
        boxes_logit=inverse_sigmoid(boxes),
        group=group,
        exists=exists,
        match=jnp.where(filled & ~negative, index, -1),
        num_groups=num_groups,
    )


def _noised_boxes(
    boxes_cxcywh: Float[Array, "b u 4"], noise: DenoisingNoise, negative: Bool[Array, " u"], scale: float
) -> Float[Array, "b u 4"]:
    """Move each edge by up to half the box size (positive) or half to the whole of it (negative), times ``scale``."""
    if scale <= 0:
        return boxes_cxcywh
    dtype = boxes_cxcywh.dtype
    half_size = 0.5 * jnp.tile(boxes_cxcywh[..., 2:], (1, 1, 2))
    magnitude = noise.magnitude.astype(dtype) + negative[:, None].astype(dtype)
    direction = (2 * noise.sign - 1).astype(dtype)
    moved = cxcywh_to_xyxy(boxes_cxcywh) + direction * magnitude * half_size * scale
    return xyxy_to_cxcywh(jnp.clip(moved, 0.0, 1.0))
