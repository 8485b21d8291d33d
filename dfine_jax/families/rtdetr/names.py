"""Names of the official state dict, and of transformers' rt_detr_v2, for our variables."""

from __future__ import annotations

import re

from dfine_jax.families import official

# Order in which the official modules declare their parts; ``order_key`` says what differs from place to place.
_ORDER = {name: rank for rank, name in enumerate(
    "backbone anchors valid_mask conv1_1 conv1_2 conv1_3 stem stem1 stem2a stem2b stem3 stem4 stages downsample "
    "first_short branch2a branch2b branch2c short input_proj decoder encoder lateral_convs fpn_blocks downsample_convs "
    "pan_blocks conv1 conv2 res_layers bottlenecks conv3 blocks conv proj norm bn "
    "self_attn in_proj_weight in_proj_bias out_proj norm1 cross_attn num_points_scale sampling_offsets "
    "attention_weights value_proj output_proj norm2 linear1 linear2 encoder_norm1 encoder_norm2 norm3 layers "
    "aggregation denoising_class_embed query_pos_head enc_output enc_score_head enc_bbox_head "
    "dec_score_head pre_bbox_head dec_bbox_head lqe_layers reg_conf "
    "weight bias running_mean running_var num_batches_tracked".split()
)}  # fmt: skip


def to_official(path: str) -> str:
    """Official key of one of our paths; a shortcut behind a pooling, which has no weights, is deeper there."""
    return official.to_official(path if "/res_layers_0/" in path else path.replace("/short/", "/short/conv/"))


def order_key(key: str, *, bottleneck: bool) -> tuple[int, ...]:
    """Sort key that puts official keys into the order of the official file.

    Args:
      bottleneck: the backbone's blocks are those of the deep ResNets, which declare the shortcut last.
    """
    parts = key.split(".")
    if parts[0] == "encoder":
        parts = [f"encoder_{part}" if part in ("norm1", "norm2") else part for part in parts]
    if not bottleneck:
        parts = ["first_short" if part == "short" else part for part in parts]
    return tuple(int(part) if part.isdigit() else _ORDER[part] for part in parts)


# Official prefixes and what transformers writes in their place; the first that fits wins.
_PLACES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.conv1\.conv1_1\.", "model.backbone.model.embedder.embedder.0."),
    (r"^backbone\.conv1\.conv1_2\.", "model.backbone.model.embedder.embedder.1."),
    (r"^backbone\.conv1\.conv1_3\.", "model.backbone.model.embedder.embedder.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", r"model.backbone.model.encoder.stages.\1.layers.\2."),
    (r"^(encoder|decoder)\.input_proj\.(\d+)\.conv\.", r"model.\1_input_proj.\2.0."),
    (r"^(encoder|decoder)\.input_proj\.(\d+)\.norm\.", r"model.\1_input_proj.\2.1."),
    (r"^encoder\.", "model.encoder."),
    (r"^decoder\.decoder\.layers\.", "model.decoder.layers."),
    (r"^decoder\.enc_output\.proj\.", "model.enc_output.0."),
    (r"^decoder\.enc_output\.norm\.", "model.enc_output.1."),
    (r"^decoder\.dec_score_head\.", "model.decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "model.decoder.bbox_embed."),
    (r"^decoder\.query_pos_head\.", "model.decoder.query_pos_head."),
    (r"^decoder\.", "model."),
)
_INSIDE: dict[str, tuple[tuple[str, str], ...]] = {
    "backbone.": (
        (r"\.branch2a\.", ".layer.0."),
        (r"\.branch2b\.", ".layer.1."),
        (r"\.branch2c\.", ".layer.2."),
        (r"\.short\.conv\.(?=conv|norm)", ".shortcut.1."),
        (r"\.short\.", ".shortcut."),
        (r"\.conv\.", ".convolution."),
        (r"\.norm\.", ".normalization."),
    ),
    "encoder.encoder.": ((r"\.norm1\.", ".self_attn_layer_norm."), (r"\.norm2\.", ".final_layer_norm.")),
    "decoder.decoder.": (
        (r"\.norm1\.", ".self_attn_layer_norm."),
        (r"\.norm2\.", ".encoder_attn_layer_norm."),
        (r"\.norm3\.", ".final_layer_norm."),
        (r"\.cross_attn\.num_points_scale", ".encoder_attn.n_points_scale"),
        (r"\.cross_attn\.", ".encoder_attn."),
    ),
}
_TRANSFORMER = ((r"\.linear([12])\.", r".fc\1."),)
# Names that its modules have where its files have others (transformers >= 5), to be read as those of files.
_ALIASES: tuple[tuple[str, str], ...] = (
    (r"^model\.encoder\.aifi\.", "model.encoder.encoder."),
    (r"\.mlp\.fc", ".fc"),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"^(class|bbox)_embed\.", r"model.decoder.\1_embed."),
)


def has_huggingface(key: str) -> bool:
    """Whether transformers' rt_detr_v2 has a place for an official key; it has no HGNetv2."""
    return any(re.search(pattern, key) for pattern, _ in _PLACES)


def to_huggingface(key: str) -> tuple[str, ...]:
    """Name in transformers' files of an official key; three for a kernel that is split (query, key, value)."""
    pattern, replacement = next(place for place in _PLACES if re.search(place[0], key))
    name = re.sub(pattern, replacement, key)
    inside = next((rules for prefix, rules in _INSIDE.items() if key.startswith(prefix)), ())
    for rule in (*inside, *(() if key.startswith("backbone.") else _TRANSFORMER)):
        name = re.sub(*rule, name)
    if (found := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name)) is None:
        return (name,)
    return tuple(f"{found[1]}{part}_proj.{found[2]}" for part in "qkv")


def of_file(name: str) -> str:
    """A transformers name as its files have it."""
    for rule in _ALIASES:
        name = re.sub(*rule, name)
    return name
