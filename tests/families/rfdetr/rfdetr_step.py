"""Training steps of RF-DETR's reference: ``rfdetr`` 1.11.2 with given weights, pictures, objects and points."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import golden_fill
import jax.numpy as jnp
import numpy as np
import rfdetr_golden
from golden_train import pad_targets
from rfdetr_criterion import FixedPoints, fixed_points, places, slots_of

from dfine_jax.families.rfdetr import decoder
from dfine_jax.families.rfdetr.config import RFDetrConfig
from dfine_jax.families.rfdetr.variants import VARIANTS
from dfine_jax.families.rfdetr.weights import read_official
from dfine_jax.typing import Targets

_KINDS = {
    "iabce": "loss_ce", "bbox": "loss_bbox", "giou": "loss_giou",
    "mask_ce": "loss_mask_ce", "mask_dice": "loss_mask_dice",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step of the reference."""

    info: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    model: RFDetrConfig
    variables: dict[str, Any]

    @classmethod
    def read(cls, golden, variant: str) -> Step:
        """``nano`` is part of the repository."""
        name = variant.replace("-", "_")
        kind = "step" if variant == "nano" else "train"
        arrays = dict(np.load(golden(f"families/{kind}_rfdetr_{name}.npz")))
        info = json.loads(golden(f"families/{kind}_rfdetr_{name}.json").read_text())
        state = rfdetr_golden.state_dict(golden(f"families/manifest_rfdetr_{name}.json"))
        model = dataclasses.replace(VARIANTS[variant], head_rows="coco")
        return cls(info, arrays, model, read_official(state, model)[1])

    @property
    def images(self) -> np.ndarray:
        """In [0, 1]."""
        return golden_fill.image(
            self.info["size"], self.info["size"], len(self.info["counts"]), self.info["image_seed"]
        )

    @property
    def targets(self) -> Targets:
        """Labels are the reference's rows, as ours; masks are the ellipses in the boxes."""
        images, size = range(len(self.info["counts"])), self.info["size"]
        rows = {row: i for i, row in enumerate([*rfdetr_golden.USED, *rfdetr_golden.UNUSED])}
        labels = [[rows[int(label)] for label in self.arrays[f"target_labels_{i}"]] for i in images]
        boxes = [self.arrays[f"target_boxes_{i}"] for i in images]
        targets = pad_targets(labels, boxes)
        if not self.model.mask_width:
            return targets
        quarters = np.zeros((*targets.labels.shape, size, size), np.uint8)
        for i in images:
            quarters[i, : len(boxes[i])] = 4 * ellipses(boxes[i], size)
        return dataclasses.replace(targets, masks=jnp.asarray(quarters), has_mask=targets.valid)

    @property
    def pairs(self) -> np.ndarray:
        """Slot of every query, of the layers in their order and of the proposals."""
        theirs = {"last": "final", "enc_0": "enc"}
        queries = self.info["groups"] * self.info["num_queries"]
        return np.stack([
            [slots_of(self.arrays[f"match_{theirs.get(where, where)}_{i}"], queries)
             for i in range(len(self.info["counts"]))]
            for where in places(self.model.decoder_layers)
        ])  # fmt: skip

    @property
    def points(self) -> FixedPoints | None:
        """Where the reference compared masks."""
        calls, slots = self.info["rand_calls"], max(self.info["counts"])
        return fixed_points(calls, self.pairs, self.info["groups"], slots) if calls else None

    @property
    def terms(self) -> dict[str, float]:
        """Weighted, by our names."""
        ends = {where: {"last": "", "enc_0": "_enc"}.get(where, where.removeprefix("aux")) for where in self.places}
        names = {f"{kind}/{w}": theirs + ends[w] for kind, theirs in _KINDS.items() for w in self.places}
        weights, losses = self.info["weights"], self.info["losses"]
        return {ours: weights[key] * losses[key] for ours, key in names.items() if key in weights}

    @property
    def places(self) -> list[str]:
        """Of its terms."""
        return places(self.model.decoder_layers)

    def with_its_tokens(self, monkeypatch) -> None:
        """Every group takes the reference's tokens, in its order: rounding swaps near ones, which changes queries."""
        chosen, calls = self.arrays["topk_index"].astype(np.int32), []

        def best(logits, count):
            if logits.shape[0] != len(chosen):  # shapes alone are asked for
                return real(logits, count)
            calls.append(None)
            return jnp.asarray(chosen[:, (len(calls) - 1) % chosen.shape[1], :count])

        real = decoder.best_tokens
        monkeypatch.setattr(decoder, "best_tokens", best)


def ellipses(boxes_cxcywh: np.ndarray, size: int) -> np.ndarray:
    """Those inscribed in the boxes, of centres of pixels, bool [n, size, size]."""
    at = (np.arange(size) + 0.5) / size
    cx, cy, w, h = boxes_cxcywh.astype(np.float64).T
    across, down = ((at[None] - c[:, None]) / (side[:, None] / 2) for c, side in ((cx, w), (cy, h)))
    return across[:, None, :] ** 2 + down[:, :, None] ** 2 <= 1.0
