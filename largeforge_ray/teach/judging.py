"""The teacher grades answers, Zheng et al. 2023 (arXiv:2306.05685): one grade an answer, none compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from largeforge_ray.teach.recipe import AnswerRecipe
from largeforge_ray.teach.work import Work
from largeforge_ray.types import GenerateRequest, Generation, Sampling, Verdict

GRADE_TOKENS = 64
GRADE = re.compile(r"(?<![\d.])(10|[1-9])(?:\s*/\s*10)?(?![\d.]\d|\d)")
ASKED = """Grade how well the answer serves the question: is it right, does it help, is it clear?
Say in one sentence what is good and what is missing, then write the grade as a whole number from 1 \
(useless) to 10 (could not be better), after 'Grade:'.

[Question]
{question}

[Answer]
{answer}"""


@dataclass(frozen=True)
class JudgedRecipe(AnswerRecipe):
    """Each answer is followed by a greedy request for its grade, which becomes the row's ``score``."""

    def follow(self, work: Work, made: Sequence[Generation]) -> GenerateRequest | None:
        if len(made) > 1:
            return None
        turns = work.item["messages"]
        question = "\n".join(m["content"] for m in turns if m["role"] != "system")
        asked = ASKED.format(question=question, answer=made[0].text)
        sampling = Sampling(temperature=0.0, max_tokens=GRADE_TOKENS)
        return GenerateRequest(
            f"{work.row_key}-grade", ({"role": "user", "content": asked},), sampling, self.adapter
        )

    def read(self, made: Sequence[Generation]) -> dict[str, Any]:
        answer, judged = made
        return {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "turns": [judged.text],
            "score": read_grade(judged.text),
        }

    def row(self, work: Work, made: Sequence[Generation]) -> dict[str, Any]:
        row = super().row(work, made)
        if row["error"] is None and row["score"] is None:
            row["filtered"] = asdict(Verdict(False, "judge", "no grade from 1 to 10"))
        return row

    def judge(self, item: dict[str, Any], row: dict[str, Any], made: Sequence[Generation]) -> Verdict:
        # Right or wrong is the judge's to say; only what is no answer is left out.
        return super().judge(item | {"check": None}, row, made)


def read_grade(text: str) -> float | None:
    """The number after the last 'Grade:', else the last number from 1 to 10; None if there is none."""
    _, marked, after = text.rpartition("Grade:")
    found = GRADE.findall(after if marked else text)
    if not found:
        return None
    return float(found[0] if marked else found[-1])
