"""What a teacher is shown, and the keys of the rows that come of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from largeforge_ray.config.stages import Teacher
from largeforge_ray.teach.pipeline import Work
from largeforge_ray.types import GenerateRequest, Message, Sampling


def teach_work(
    item: dict[str, Any], *, teacher: Teacher, teacher_key: str, sampling: Sampling, samples: int
) -> list[Work]:
    """The rows to make of one prompt: ``samples`` draws, each with a seed of its own."""
    shown = show_teacher(item["messages"], teacher)
    work = []
    for index in range(samples):
        drawn = replace(sampling, seed=_seed(sampling.seed or 0, item["item_hash"], index))
        key = row_key(shown, teacher_key, drawn)
        request = GenerateRequest(key, tuple(shown), drawn)
        work.append(Work(key, request, item | {"teacher": teacher_key, "index": index}))
    return work


def show_teacher(messages: list[Message], teacher: Teacher) -> list[Message]:
    """The prompt as the teacher sees it: instructions first, worked examples next, then the prompt."""
    system = [m for m in messages if m["role"] == "system"]
    if teacher.instructions:
        system = [{"role": "system", "content": teacher.instructions}]
    return [*system, *teacher.examples, *(m for m in messages if m["role"] != "system")]


def row_key(messages: list[Message], teacher_key: str, sampling: Sampling) -> str:
    """SHA-256 (64 hex) of what decides a teacher's row."""
    content = [messages, teacher_key, asdict(sampling)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _seed(base: int, item_hash: str, index: int) -> int:
    return int(hashlib.sha256(f"{base}:{item_hash}:{index}".encode()).hexdigest()[:8], 16)
