"""Names of the official state dict of our variables.

A path is ``collection/module/.../leaf``, for example ``params/backbone/stem/stem1/conv/kernel`` for the official
``backbone.stem.stem1.conv.weight``. Numbers are glued to the name before them (``layers.0`` -> ``layers_0``) and the
doubled ``decoder.decoder.`` is written once. The order of keys is the order of the official file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NORMS = ("bn", "norm", "norm1", "norm2", "norm3")
_INNER_DECODER = ("layers_", "lqe_layers_")  # modules of the official decoder.decoder

# What the official file holds and our variables do not, by the end of the key, with the reason.
IGNORED: dict[str, str] = {
    "num_batches_tracked": "a counter nothing reads",
    "decoder.anchors": "computed from the input size",
    "decoder.valid_mask": "computed from the input size",
    "decoder.up": "part of the configuration",
    "decoder.reg_scale": "part of the configuration",
    "cross_attn.num_points_scale": "the constant 1 / points per level; a drifted value is folded into sampling_offsets",
}

# Order in which the official modules declare their parts. norm1 stands before cross_attn in the decoder and, in the
# encoder, between linear2 and norm2 (see order_key).
_ORDER = {name: rank for rank, name in enumerate(
    "backbone up reg_scale anchors valid_mask stem stem1 stem2a stem2b stem3 stem4 stages downsample blocks "
    "input_proj decoder encoder lateral_convs fpn_blocks downsample_convs pan_blocks "
    "cv1 cv2 cv3 cv4 conv1 conv2 bottlenecks conv bn lab "
    "self_attn in_proj_weight in_proj_bias out_proj norm1 cross_attn num_points_scale sampling_offsets "
    "attention_weights gateway gate linear1 linear2 encoder_norm1 norm2 norm3 reg_conf layers lqe_layers aggregation "
    "denoising_class_embed query_pos_head enc_output proj norm enc_score_head enc_bbox_head dec_score_head "
    "pre_bbox_head dec_bbox_head weight scale bias running_mean running_var num_batches_tracked".split()
)}  # fmt: skip


def ignored_reason(key: str) -> str | None:
    """Why an official key has no place in our variables, or None when it must have one."""
    return next((reason for end, reason in IGNORED.items() if key.endswith(end)), None)


def to_official(path: str) -> str:
    """Official key of one of our paths."""
    collection, *modules, leaf = path.split("/")
    if modules[0] == "decoder" and len(modules) > 1 and modules[1].startswith(_INNER_DECODER):
        modules = ["decoder", *modules]
    if collection == "batch_stats":
        leaf = f"running_{leaf}"
    elif leaf in ("kernel", "embedding") or (leaf == "scale" and modules[-1] in NORMS):
        leaf = "weight"
    key = re.sub(r"_(?=\d+(\.|_|$))", ".", ".".join([*modules, leaf]))
    return key.replace(".in_proj.", ".in_proj_")


def order_key(key: str) -> tuple[int, ...]:
    """Sort key that puts official keys into the order of the official file."""
    parts = key.split(".")
    if parts[0] == "encoder":
        parts = ["encoder_norm1" if p == "norm1" else p for p in parts]
    return tuple(int(p) if p.isdigit() else _ORDER[p] for p in parts)


def in_official_order(keys: Iterable[str]) -> list[str]:
    """Keys sorted as in the official file."""
    return sorted(keys, key=order_key)
