"""Less work with the same weights, for networks of encoder tokens, queries and decoder layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from dfine_jax.errors import UserError
from dfine_jax.families.family import Reduction


def reduced(network: Any, variables: Mapping[str, Any], reduction: Reduction) -> nn.Module:
    """The network at another operating point.

    Its configuration has ``num_queries`` and ``decoder_layers``; it has a field ``keep_queries``, queries that go on
    after each of the first decoder layers; its layers answer through heads ``decoder/dec_score_head_i``.

    Raises:
      UserError: more is asked for than the model has, or the weights lack the heads of an inner layer.
    """
    config, prune, num_queries = network.config, reduction.prune, reduction.num_queries
    if prune and num_queries is not None and prune[0] != num_queries:
        raise UserError(f"pruning starts with {prune[0]} queries, but {num_queries} are asked for; give one of the two")
    num_queries = num_queries if num_queries is not None else (prune[0] if prune else config.num_queries)
    layers = config.decoder_layers if reduction.layers is None else reduction.layers
    kept = tuple(prune)[1:]
    if not 1 <= num_queries <= config.num_queries:
        raise UserError(f"{num_queries} queries: the model has {config.num_queries}; give 1 to {config.num_queries}")
    if not 1 <= layers <= config.decoder_layers:
        raise UserError(f"{layers} decoder layers: the model has {config.decoder_layers}")
    if len(kept) >= layers or list(kept) != sorted(kept, reverse=True) or any(k < 1 for k in kept):
        raise UserError(f"pruning {'>'.join(map(str, prune))} must fall and have at most {layers} numbers")
    if kept and kept[0] > num_queries:
        raise UserError(f"pruning to {kept[0]} of {num_queries} queries removes nothing")
    for i in {*range(len(kept)), layers - 1}:
        if f"dec_score_head_{i}" not in variables["params"]["decoder"]:
            raise UserError(f"the weights have no heads for decoder layer {i + 1}; take the checkpoint of the training")
    config = dataclasses.replace(config, num_queries=num_queries, decoder_layers=layers)
    return network.clone(config=config, keep_queries=kept)
