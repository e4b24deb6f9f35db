"""Attention over sequences that lie end to end, each by itself (read in transformers 5.17.0).

The library's own way is one mask over the whole row: its cost grows with the square of the row's
length, of which a sequence needs only its own part. Here every sequence is a causal attention of
its own, so nothing can be seen across a border and a longer row costs no more than its parts.
"""

from __future__ import annotations

import itertools
from typing import Any

from largeforge_ray.errors import ModelError

NAME = "largeforge_packed"


def register_attention() -> str:
    """Make the attention known to transformers; returns the name to load a model with."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def _no_mask(*_: Any, **__: Any) -> None:
    """The borders say everything a mask would."""


def _attend(
    module: Any,
    query_BHTD: Any,
    key_BHTD: Any,
    value_BHTD: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    import torch
    import torch.nn.functional as F

    borders = [0, query_BHTD.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    spans = list(itertools.pairwise(borders))
    longest = max(b - a for a, b in spans)
    if sliding_window is not None and longest > sliding_window:
        raise ModelError(
            f"a sequence of {longest} tokens exceeds the model's attention window of {sliding_window}, "
            "which packing does not keep; set batching: bucketed"
        )
    parts = [
        F.scaled_dot_product_attention(
            query_BHTD[:, :, a:b],
            key_BHTD[:, :, a:b],
            value_BHTD[:, :, a:b],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=key_BHTD.shape[1] != query_BHTD.shape[1],
        )
        for a, b in spans
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
