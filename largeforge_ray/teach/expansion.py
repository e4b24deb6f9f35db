"""New prompts from given ones: others like them (self-instruct), or each of them made harder (evolve).

Wang et al. 2022 (arXiv:2212.10560); Xu et al. 2023 (arXiv:2304.12244).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.teach.prompts import number, show_teacher
from largeforge_ray.teach.recipe import AnswerRecipe
from largeforge_ray.types import Generation, Verdict

LISTED = re.compile(r"^\s*(?:\d+\s*[.):]|[-*•])\s*(.+?)\s*$", re.MULTILINE)
OTHERS = """Here are {shown} tasks that people give to an assistant:

{tasks}

Write {asked} new tasks of the same kind. They must differ from these and from each other, be complete by \
themselves, and need no more context. Write them as a numbered list and write nothing else."""
HARDER = """Rewrite this task for an assistant. {how} Keep it possible to answer, complete by itself, and at \
most {words} words longer. Write the rewritten task and nothing else.

{task}"""
WAYS = (
    "Add one more condition that the answer must meet.",
    "Make it ask for a deeper explanation.",
    "Replace general words in it by specific ones.",
    "Make it need one more step of reasoning.",
    "Turn it into a rarer task of the same field.",
)
LONGER = 25


@dataclass(frozen=True)
class ExpansionRecipe(AnswerRecipe):
    """``samples`` requests for each given prompt. ``pool`` are the given ones; an answer's ``turns`` are the
    new prompts in it."""

    method: str = "self_instruct"
    pool: tuple[str, ...] = ()
    beside: int = 4
    asked: int = 4

    def shown(self, item: dict[str, Any]) -> list[dict[str, str]]:
        dice = random.Random(number(self.sampling.seed, item["item_hash"]))
        task = item["messages"][-1]["content"]
        if self.method == "evolve":
            asked = HARDER.format(how=dice.choice(WAYS), words=LONGER, task=task)
        else:
            others = [text for text in self.pool if text != task]
            tasks = [task, *dice.sample(others, min(self.beside - 1, len(others)))]
            listed = "\n".join(f"{i}. {text}" for i, text in enumerate(tasks, 1))
            asked = OTHERS.format(shown=len(tasks), tasks=listed, asked=self.asked)
        return show_teacher([{"role": "user", "content": asked}], self.teacher)

    def read(self, made: Sequence[Generation]) -> dict[str, Any]:
        text = made[-1].text.strip()
        if self.method == "evolve":
            return {"turns": [text] if text else []}
        found = LISTED.findall(text)
        # The last task of a list that was cut off is no task.
        return {"turns": found[:-1] if made[-1].finish_reason == "length" else found}

    def judge(self, item: dict[str, Any], row: dict[str, Any], made: Sequence[Generation]) -> Verdict:
        if not row["turns"]:
            return Verdict(False, "list", "no task in the answer")
        if self.method == "evolve" and row["finish_reason"] == "length":
            return Verdict(False, "length", "cut off at max_tokens")
        return Verdict(True, "list", "tasks found")
