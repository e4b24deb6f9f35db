"""What is made of teacher rows: chats, rationales, pairs or prompts, in an order that never varies.

Rows come sorted by ``item_hash``, so that a prompt's rows stand together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from largeforge_ray.data.rows import SIGNALS
from largeforge_ray.data.split import row_hash
from largeforge_ray.teach.recipe import stays
from largeforge_ray.teach.rows import with_signals

Row = dict[str, Any]


def in_place(row: Row) -> tuple[str, str, str]:
    """What teacher rows are sorted by: a prompt's rows together, each in its place."""
    return row["item_hash"], row["teacher"], f"{row['sampling']['index']:06d}"


def chats(rows: Iterable[Row], keep: str) -> Iterator[Row]:
    """A chat for each different answer to a prompt, with the answer's signals where there are any."""
    for answers in _answers(rows, keep):
        for text in sorted(answers):
            row = answers[text]
            said = [*row["messages"], {"role": "assistant", "content": text}]
            made = _dataset_row(row, said)
            yield made | {n: v for n, v in with_signals(row).items() if n in SIGNALS and v is not None}


def rationales(rows: Iterable[Row], keep: str) -> Iterator[Row]:
    """A chat with its rationale for each different answer to a prompt, the first that was drawn."""
    for answers in _answers(rows, keep):
        for text in sorted(answers):
            row = answers[text]
            said = [*row["messages"], {"role": "assistant", "content": text}]
            yield _dataset_row(row, said) | {"rationale": row["rationale"]}


def pairs(rows: Iterable[Row], most: int, by: str) -> Iterator[Row]:
    """The best and the worst of a prompt's answers, the second best and the second worst, up to ``most``.

    ``by`` check the right ones are better than the wrong ones, otherwise it is by ``score``; two of equal
    worth make no pair.
    """
    for answers in _answers(rows, "all"):
        worth = {text: _worth(row, by) for text, row in answers.items()}
        scored = [(score, text) for text, score in worth.items() if score is not None]
        ranked = sorted(scored, key=lambda each: (-each[0], each[1]))
        for place in range(min(most, len(ranked) // 2)):
            best, worst = ranked[place], ranked[-1 - place]
            if best[0] > worst[0]:
                yield _pair(answers[best[1]], best[1], worst[1])


def _worth(row: Row, by: str) -> float | None:
    score: float | None = float(row["verdict"]["kept"]) if by == "check" else row["score"]
    return score


def revised(rows: Iterable[Row], keep: str, as_pairs: bool) -> Iterator[Row]:
    """The revised answers as chats, or as pairs with the first answers, where they differ."""
    if not as_pairs:
        yield from chats(rows, keep)
        return
    for answers in _answers(rows, keep):
        for text in sorted(answers):
            first = answers[text]["turns"][0].strip()
            if first and first != text:
                yield _pair(answers[text], text, first)


def prompts(rows: Iterable[Row], keep: str) -> Iterator[Row]:
    """Each new prompt in the rows that stay, as a row of a dataset of prompts."""
    for row in rows:
        if stays(row, keep):
            for index, text in enumerate(row["turns"]):
                asked = [{"role": "user", "content": text}]
                made = _dataset_row(row, asked)
                yield made | {"item_id": f"{row['prompt_id']}-{index}", "item_hash": row_hash(asked)}


def _answers(rows: Iterable[Row], keep: str) -> Iterator[dict[str, Row]]:
    """For each prompt its different answers that stay, each with the first row that gave it."""
    for _, group in groupby(rows, key=lambda row: row["item_hash"]):
        answers: dict[str, Row] = {}
        for row in group:
            if stays(row, keep):
                answers.setdefault(row["text"].strip(), row)
        if answers:
            yield answers


def _dataset_row(row: Row, messages: list[dict[str, str]]) -> Row:
    return {
        "item_id": row["prompt_id"],
        "item_hash": row["item_hash"],
        "messages": messages,
        "answer": None,
        "check": None,
    }


def _pair(row: Row, chosen: str, rejected: str) -> Row:
    sides = {"chosen": chosen, "rejected": rejected}
    turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return _dataset_row(row, row["messages"]) | turns
