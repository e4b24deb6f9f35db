"""Content hashes, and the held-out split that follows from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from largeforge_ray.types import Message


def row_hash(messages: Sequence[Message], answer: Any = None) -> str:
    """SHA-256 (64 hex) of what a row asks and expects; its id and place in the file do not count."""
    content = [[m["role"], m["content"]] for m in messages]
    return hashlib.sha256(
        json.dumps([content, answer], sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def is_test(digest: str, share: float) -> bool:
    """Whether a row with this hash is held out: the same answer on every machine and in every order."""
    return int(digest[:13], 16) / 16**13 < share


def is_test_of_part(messages: Sequence[Message], share: float) -> bool:
    """``is_test`` for what is asked in a part that was split by it already: by another hash, because that
    part's are all on one side."""
    return is_test(row_hash(messages, "split again"), share)
