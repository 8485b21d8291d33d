"""Loss terms by name, ``kind/where``: what the losses of all families do with the values of their terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Array, Float

from dfine_jax.losses import terms
from dfine_jax.typing import DenoisingQueries, HeadOutput, ModelOutput, StageOutput

Terms = dict[str, Float[Array, "*s"]]


def named_at(values: Terms, where: str) -> Terms:
    """Terms of one output, by kind, under their names."""
    return {f"{kind}/{where}": value for kind, value in values.items()}


def by_layer(values: Terms, places: Sequence[str]) -> Terms:
    """Terms of all layers, split; a term with fewer layers than places has none for the last ones."""
    split = {}
    for i, where in enumerate(places):
        split |= named_at({kind: value[i] for kind, value in values.items() if i < value.shape[0]}, where)
    return split


def layer_places(layers: int) -> list[str]:
    """Where the outputs of decoder layers are: ``aux_0`` and so on, then ``last``."""
    return [f"aux_{i}" for i in range(layers - 1)] + ["last"]


class BoxWeights(Protocol):
    """Fields of a loss configuration."""

    @property
    def weight_bbox(self) -> float:
        """Of the L1 distance."""
        ...

    @property
    def weight_giou(self) -> float:
        """Of the generalised IoU."""
        ...


def box_terms(
    head: HeadOutput | StageOutput, truth: terms.Truth, normalizer: Float[Array, ""], weights: BoxWeights
) -> Terms:
    """Weighted distances of boxes from the true ones: L1 of the coordinates, generalised IoU."""
    return {
        "bbox": weights.weight_bbox * terms.l1_loss(head.boxes_cxcywh, truth, normalizer),
        "giou": weights.weight_giou * terms.giou_loss(head.boxes_cxcywh, truth, normalizer),
    }


def training_part(output: ModelOutput, denoising: DenoisingQueries | None) -> Any:
    """``output.training``, which fits the denoising queries.

    Raises:
      ValueError: there is none, or denoising queries went only to the model or only to the loss.
    """
    training = output.training
    if training is None:
        raise ValueError("the output has no training part; run the model with train=True")
    if (training.denoising is None) != (denoising is None):
        raise ValueError("denoising queries must be given to both the model and the loss, or to neither")
    return training
