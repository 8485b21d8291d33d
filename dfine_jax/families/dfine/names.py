"""The order of the official state dict (families/official.py has its names)."""

from __future__ import annotations

# Order in which the official modules declare their parts. norm1 stands before cross_attn in the decoder and, in the
# encoder, between linear2 and norm2 (see order_key).
_ORDER = {name: rank for rank, name in enumerate(
    "backbone up reg_scale anchors valid_mask stem stem1 stem2a stem2b stem3 stem4 stages downsample blocks "
    "input_proj decoder encoder lateral_convs fpn_blocks downsample_convs pan_blocks "
    "cv1 cv2 cv3 cv4 conv1 conv2 bottlenecks conv bn lab "
    "self_attn in_proj_weight in_proj_bias out_proj norm1 cross_attn num_points_scale sampling_offsets "
    "attention_weights gateway gate linear1 linear2 encoder_norm1 norm2 norm3 reg_conf layers lqe_layers aggregation "
    "denoising_class_embed query_pos_head enc_output proj norm enc_score_head enc_bbox_head dec_score_head "
    "pre_bbox_head dec_bbox_head mask_decoder lateral fusion_conv fusion_norm up_conv bn1 mask_head "
    "weight scale bias running_mean running_var num_batches_tracked".split()
)}  # fmt: skip


def order_key(key: str) -> tuple[int, ...]:
    """Sort key that puts official keys into the order of the official file."""
    parts = key.split(".")
    if parts[0] == "encoder":
        parts = ["encoder_norm1" if p == "norm1" else p for p in parts]
    return tuple(int(p) if p.isdigit() else _ORDER[p] for p in parts)
