"""Reasoning and answer apart, Hsieh et al. 2023 (arXiv:2305.02301)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.teach.prompts import show_teacher
from largeforge_ray.teach.recipe import AnswerRecipe
from largeforge_ray.types import Generation, Verdict


@dataclass(frozen=True)
class RationaleRecipe(AnswerRecipe):
    """The teacher reasons first; the check sees what follows ``marker``."""

    marker: str = "Answer:"

    def shown(self, item: dict[str, Any]) -> list[dict[str, str]]:
        asked = (
            "Think it through step by step and write your reasoning down. Then write the final answer alone "
            f"on a last line that begins with '{self.marker}'."
        )
        return show_teacher(item["messages"], self.teacher, asked)

    def read(self, made: Sequence[Generation]) -> dict[str, Any]:
        rationale, answer = split_rationale(made[-1].text, self.marker)
        return {"rationale": rationale, "text": answer}

    def judge(self, item: dict[str, Any], row: dict[str, Any], made: Sequence[Generation]) -> Verdict:
        if self.marker not in made[-1].text:
            return Verdict(False, "rationale", f"no '{self.marker}' in the answer")
        if not row["rationale"]:
            return Verdict(False, "rationale", "no reasoning before the answer")
        return super().judge(item, row, made)


def split_rationale(text: str, marker: str) -> tuple[str, str]:
    """What stands before the last ``marker``, and after it; everything is answer if there is none."""
    before, found, after = text.rpartition(marker)
    return (before.strip(), after.strip()) if found else ("", text.strip())
