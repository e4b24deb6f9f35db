"""Whether token ids of one model mean the same to another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def tokenizer_hash(model_dir: Path) -> str:
    """SHA-256 of vocabulary (added tokens included), merges and the token that ends an answer.

    Chat template, padding and how text is normalised before it is split do not count: they change which ids a
    text has, not what an id means.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges") if backend else None
    meaning = [sorted(tokenizer.get_vocab().items()), merges, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(meaning, ensure_ascii=False).encode()).hexdigest()
