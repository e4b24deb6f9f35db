"""The recipe that the others build on: several answers to a prompt, each checked and filtered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from largeforge_ray.config.teaching import Teacher
from largeforge_ray.data.forms import prompt_turns
from largeforge_ray.teach.prompts import draw, row_key, show_teacher
from largeforge_ray.teach.rows import teacher_row
from largeforge_ray.teach.verify import verify
from largeforge_ray.teach.work import Recipe, Work
from largeforge_ray.types import GenerateRequest, Generation, Sampling, Verdict

Filter = Callable[[str, str], tuple[str, Verdict | None]]
"""``(prompt, answer)`` to the answer as it stays, and why it does not."""


@dataclass(frozen=True)
class AnswerRecipe(Recipe):
    """``samples`` draws of each prompt, each with a seed of its own. ``adapter`` is the teacher's folder, if
    it is one; ``keep`` is the stage's."""

    teacher: Teacher
    teacher_key: str
    sampling: Sampling
    samples: int
    keep: str = "verified"
    adapter: str | None = None
    topk: int | None = None
    accept: Filter | None = None

    def shown(self, item: dict[str, Any]) -> list[dict[str, str]]:
        """What the teacher is asked first."""
        return show_teacher(item["messages"], self.teacher)

    def work(self, item: dict[str, Any]) -> list[Work]:
        # Of a chat, the teacher answers what the answer at hand is to.
        item = item | {"messages": prompt_turns(item["messages"])}
        shown, work = self.shown(item), []
        for index in range(self.samples):
            sampling = draw(self.sampling, item["item_hash"], index)
            key = row_key(shown, self.teacher_key, sampling)
            request = GenerateRequest(key, tuple(shown), sampling, self.adapter, topk=self.topk)
            work.append(Work(key, request, item | {"teacher": self.teacher_key, "index": index}))
        return work

    def row(self, work: Work, made: Sequence[Generation]) -> dict[str, Any]:
        """The row of a conversation with the teacher; ``error`` is that of the turn that failed."""
        row = teacher_row(work, made)
        if row["error"] is not None:
            return row
        row |= self.read(made)
        row["verdict"] = asdict(self.judge(work.item, row, made))
        if self.accept is not None and stays(row, self.keep):
            prompt = next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")
            row["text"], refused = self.accept(prompt, row["text"])
            row["filtered"] = refused and asdict(refused)
        return row

    def read(self, made: Sequence[Generation]) -> dict[str, Any]:
        """What the answers say, as fields of the row."""
        return {}

    def judge(self, item: dict[str, Any], row: dict[str, Any], made: Sequence[Generation]) -> Verdict:
        """Whether the row's text is right."""
        verdict = verify(item["check"], row["text"], item["answer"])
        if verdict.kept and row["finish_reason"] == "length":
            return Verdict(False, "length", "cut off at max_tokens")
        return verdict

    def numbers(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "failed": row["error"] is not None,
            "kept": stays(row, self.keep),
            "tokens": int(row["completion_tokens"]),
            "prompt": int(row["prompt_tokens"]),
            "cached": int(row["cached_tokens"]),
            "usd": float(row["usd"]),
        }


def stays(row: dict[str, Any], keep: str) -> bool:
    """Whether a row is made something of."""
    if row["error"] is not None or row["filtered"] is not None or not row["text"].strip():
        return False
    return keep == "all" or bool(row["verdict"]["kept"])


def reason(row: dict[str, Any], keep: str) -> str | None:
    """Why a row does not stay, in words that can be counted; None if it does."""
    if row["error"] is not None:
        return f"failed: {row['error']}"
    refused = row["filtered"] or row["verdict"]
    return None if stays(row, keep) else f"{refused['by']}: {refused['reason']}"
