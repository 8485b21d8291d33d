"""HGNetv2 trained on ImageNet, as the official files hold it: the backbone alone, without a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfine_jax.config import ModelConfig
from dfine_jax.converters.torch import name_map
from dfine_jax.converters.torch.state_dicts import BACKBONE
from dfine_jax.converters.torch.tensor_files import read_tensors
from dfine_jax.converters.torch.torch_weights import leaf_shapes, to_tree
from dfine_jax.errors import UserError

_PREFIX = "backbone."
_LISTED = 4


def import_backbone(source: str | Path, config: ModelConfig) -> dict[str, Any]:
    """``{"params", "batch_stats"}`` of the backbone of a configuration (float32 NumPy).

    Args:
      source: official ``PPHGNetV2_B*_stage1.pth``, a ``.safetensors`` with the same names, or a detector, whose
        backbone is taken.
      config: whose backbone it must be; a file fits in every entry or is refused.

    Raises:
      UserError: the file is missing, damaged, or of another backbone.
    """
    source = Path(source)
    if not source.is_file():
        raise UserError(f"{source} does not exist; give a backbone file, or the word imagenet to download it")
    tensors = {_PREFIX + key: value for key, value in read_tensors(source, BACKBONE).tensors.items()}
    collections = ("params/backbone/", "batch_stats/backbone/")
    expected = {path: shape for path, shape in leaf_shapes(config).items() if path.startswith(collections)}
    official = {path: name_map.to_official(path) for path in expected}
    known = set(official.values())
    problems = [f"{key} is missing" for key in official.values() if key not in tensors]
    problems += [f"{key} is unexpected" for key in tensors if key not in known and not name_map.ignored_reason(key)]
    for path, key in official.items():
        wanted = name_map.tensor_shape(path, expected[path])
        if key in tensors and tuple(tensors[key].shape) != wanted:
            problems.append(f"{key} is {list(tensors[key].shape)}, not {list(wanted)}")
    if problems:
        more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UserError(
            f"{source} is not HGNetv2-{config.backbone}, the backbone of D-FINE-{config.variant.upper()}: "
            f"{', '.join(problems[:_LISTED])}{more}"
        )
    try:
        tree = to_tree(tensors, official)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return {name: tree[name]["backbone"] for name in ("params", "batch_stats")}
