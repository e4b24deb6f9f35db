"""What a teacher is shown, and the keys of the rows that come of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from largeforge_ray.config.teaching import Teacher
from largeforge_ray.types import Message, Sampling


def show_teacher(messages: Sequence[Message], teacher: Teacher, also: str = "") -> list[Message]:
    """The prompt as the teacher sees it: instructions first, worked examples next, then the prompt.

    ``also`` is added to the instructions.
    """
    system = [m for m in messages if m["role"] == "system"]
    if teacher.instructions:
        system = [{"role": "system", "content": teacher.instructions}]
    if also:
        told = "\n\n".join([*(m["content"] for m in system), also])
        system = [{"role": "system", "content": told}]
    return [*system, *teacher.examples, *(m for m in messages if m["role"] != "system")]


def row_key(messages: Sequence[Message], teacher_key: str, sampling: Sampling) -> str:
    """SHA-256 (64 hex) of what decides a teacher's row."""
    content = [list(messages), teacher_key, asdict(sampling)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def draw(sampling: Sampling, *names: Any) -> Sampling:
    """``sampling`` with a seed of its own for what is named; the same whenever it is asked."""
    return replace(sampling, seed=number(sampling.seed or 0, *names))


def number(*names: Any) -> int:
    """A number of 32 bits that follows from the names."""
    return int(hashlib.sha256(":".join(map(str, names)).encode()).hexdigest()[:8], 16)
