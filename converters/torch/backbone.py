"""Backbones trained on ImageNet, as official files hold them: alone, without a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfine_jax import families
from dfine_jax.config import ModelSection
from dfine_jax.converters.torch.tensor_files import read_tensors
from dfine_jax.errors import UserError
from dfine_jax.families.state_dict import read_backbone


def import_backbone(source: str | Path, model: ModelSection) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of the backbone of a model (float32 NumPy).

    Args:
      source: official file, a ``.safetensors`` with the same names, or a detector, whose backbone is taken.
      model: whose backbone it must be; a file fits in every entry or is refused.

    Raises:
      UserError: the file is missing, damaged, or of another backbone.
    """
    source, family = Path(source), families.of(model)
    if not source.is_file():
        raise UserError(f"{source} does not exist; give a backbone file, or the word imagenet to download it")
    try:
        return read_backbone(read_tensors(source, family.backbone_anchors).tensors, model)
    except UserError as error:
        raise error if str(source) in str(error) else UserError(f"{source}: {error}") from error
