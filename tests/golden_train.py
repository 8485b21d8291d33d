"""Targets and denoising queries of the reference's training steps, in the types of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from golden_weights import hash_uniform

from dfine_jax.nn.denoising import DenoisingNoise
from dfine_jax.typing import DenoisingQueries, Targets

HASH_LABELS = ((0, 17, 79), (2, 2, 5, 40, 61))
HASH_BOXES = (
    ((0.5, 0.5, 0.4, 0.6), (0.25, 0.3, 0.2, 0.2), (0.8, 0.75, 0.1, 0.3)),
    (
        (0.1, 0.1, 0.15, 0.12),
        (0.6, 0.4, 0.5, 0.5),
        (0.62, 0.41, 0.48, 0.52),
        (0.9, 0.2, 0.08, 0.3),
        (0.35, 0.8, 0.3, 0.25),
    ),
)


def pad_targets(
    labels: Sequence[Any], boxes: Sequence[Any], slots: int | None = None, dtype: Any = np.float32
) -> Targets:
    """Targets of per-image label and box lists, padded to ``slots`` (default: the largest count)."""
    slots = max(len(x) for x in labels) if slots is None else slots
    out = Targets(
        labels=np.zeros((len(labels), slots), np.int32),
        boxes_cxcywh=np.zeros((len(labels), slots, 4), dtype),
        valid=np.zeros((len(labels), slots), bool),
    )
    for i, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        count = len(label)
        out.labels[i, :count], out.valid[i, :count] = label, True
        out.boxes_cxcywh[i, :count] = np.asarray(box, dtype).reshape(count, 4)
    return Targets(jnp.asarray(out.labels), jnp.asarray(out.boxes_cxcywh), jnp.asarray(out.valid))


def golden_targets(arrays: Mapping[str, np.ndarray], slots: int | None = None) -> Targets:
    """Targets stored in ``train_*.npz``."""
    batch = sum(key.startswith("target_labels_") for key in arrays)
    labels = [arrays[f"target_labels_{i}"] for i in range(batch)]
    return pad_targets(labels, [arrays[f"target_boxes_{i}"] for i in range(batch)], slots)


def golden_denoising(arrays: Mapping[str, np.ndarray], slots: int) -> DenoisingQueries | None:
    """Denoising queries as drawn by the reference (``dn_*`` of ``train_*.npz``), in ``slots`` slots."""
    if "dn_class" not in arrays:
        return None
    labels, boxes = arrays["dn_class"], arrays["dn_bbox_unact"]
    batch, used = labels.shape
    groups = int(arrays["dn_num_group"])
    match = np.full((batch, slots), -1, np.int32)
    for i in range(batch):
        match[i, arrays[f"dn_positive_idx_{i}"]] = np.tile(np.arange(len(arrays[f"target_labels_{i}"])), groups)
    rest = slots - used
    return DenoisingQueries(
        labels=jnp.asarray(np.pad(labels, ((0, 0), (0, rest)), constant_values=80)),
        boxes_logit=jnp.asarray(np.pad(boxes, ((0, 0), (0, rest), (0, 0)))),
        group=jnp.arange(slots) // (used // groups),
        exists=jnp.arange(slots) < used,
        match=jnp.asarray(match),
        num_groups=jnp.asarray(groups),
    )


def reference_names(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Terms ``kind/where`` under the names that the reference gives them."""
    places = {name: name.split("/") for name in terms}
    return {f"loss_{k}" + (f"_{w}" if w != "last" else ""): terms[name] for name, (k, w) in places.items()}


def hash_targets(dtype: Any = np.float32, slots: int | None = None) -> Targets:
    """Targets of appendix A.3."""
    return pad_targets(HASH_LABELS, HASH_BOXES, slots, dtype)


def hash_noise(batch: int = 2, slots: int = 200, dtype: Any = np.float32) -> DenoisingNoise:
    """Denoising draws of appendix A.3."""
    mask = (hash_uniform("dn_label_mask", (batch, slots)) + 1) / 2
    label = np.floor(80 * (hash_uniform("dn_new_label", (batch, slots)) + 1) / 2)
    sign = np.floor(hash_uniform("dn_sign", (batch, slots, 4)) + 1)
    magnitude = (hash_uniform("dn_box_part", (batch, slots, 4)) + 1) / 2
    return DenoisingNoise(
        label_mask=jnp.asarray(mask.astype(dtype)),
        new_label=jnp.asarray(label.astype(np.int32)),
        sign=jnp.asarray(sign.astype(np.int32)),
        magnitude=jnp.asarray(magnitude.astype(dtype)),
    )
