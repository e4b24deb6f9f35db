"""The teacher row: one sampled answer with its verdict, or the error in its place."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from largeforge_ray.teach.pipeline import Work
from largeforge_ray.teach.verify import verify
from largeforge_ray.types import Generation


def teacher_row(work: Work, generation: Generation) -> dict[str, Any]:
    """Judge one generation; ``messages`` are the item's own, without what only the teacher saw."""
    item = work.item
    verdict = None if generation.error else asdict(verify(item["check"], generation.text, item["answer"]))
    if verdict and generation.finish_reason == "length" and verdict["kept"]:
        verdict = {"kept": False, "by": "length", "reason": "cut off at max_tokens"}
    return {
        "row_key": work.row_key,
        "prompt_id": item["item_id"],
        "item_hash": item["item_hash"],
        "messages": item["messages"],
        "teacher": item["teacher"],
        "sampling": asdict(work.request.sampling) | {"index": item["index"]},
        "text": generation.text,
        "rationale": None,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "seconds": generation.seconds,
        "token_ids": None,
        "topk_ids": None,
        "topk_logprobs": None,
        "tail_logprob": None,
        "verdict": verdict,
        "error": generation.error,
    }


def kept_chats(rows: Any, keep: str) -> list[dict[str, Any]]:
    """Chats to train on, one for each different answer to a prompt, in an order that never varies."""
    chats: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["error"] or (keep == "verified" and not row["verdict"]["kept"]):
            continue
        text = row["text"].strip()
        if not text:
            continue
        chats[row["item_hash"], text] = {
            "item_id": row["prompt_id"],
            "item_hash": row["item_hash"],
            "messages": [*row["messages"], {"role": "assistant", "content": text}],
            "answer": None,
            "check": None,
        }
    return [chats[k] for k in sorted(chats)]
