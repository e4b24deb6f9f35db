"""What of an embedding model's folder says how texts become vectors, as sentence-transformers writes it."""

from __future__ import annotations

import json
from pathlib import Path

from largeforge_ray.errors import ModelError
from largeforge_ray.models.rope import native_context

LENGTH = "sentence_bert_config.json"
POOLING = "*_Pooling/config.json"
"""In folders of their own, which ``modules.json`` refers to."""


def pooling_files(folder: Path) -> list[Path]:
    """Those that say how the states of a text's tokens become one vector."""
    return sorted(folder.glob(POOLING))


def longest_text(folder: Path) -> int:
    """Tokens of a text that the model in ``folder`` takes, as vLLM 0.29 reads it.

    Raises ``ModelError`` if nothing says so.
    """
    told = folder / LENGTH
    if told.is_file():
        length = json.loads(told.read_text(encoding="utf-8")).get("max_seq_length")
        if isinstance(length, int):
            return length
    native = native_context(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if native is None:
        raise ModelError(
            f"config.json in {folder} has no max_position_embeddings, and there is no {LENGTH} with "
            "max_seq_length: how long a text may be is not known; add either"
        )
    return native
