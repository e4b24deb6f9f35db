"""What a router learns from: prompts, each with the quality of every expert's answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from largeforge_ray.config.evaluating import EvaluateStage
from largeforge_ray.config.routing import RouterStage
from largeforge_ray.config.training import Training
from largeforge_ray.data import read_rows
from largeforge_ray.data.split import is_test
from largeforge_ray.errors import DataError
from largeforge_ray.evaluate import read_outcomes
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.plan import part_of
from largeforge_ray.routing.territory import first_distinct, last_user


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt, the hash that decides which side it is on, and the quality 0..1 of each expert's answer."""

    text: str
    digest: str
    quality: tuple[float, ...]


def read_lessons(
    context: RunContext, declared: RouterStage
) -> tuple[tuple[str, ...], list[Lesson], list[Lesson]]:
    """The experts, what is learnt from and what is held out. Raises ``DataError`` for a row without a known
    expert, and if there is nothing on one of the sides."""
    if declared.outcomes is None:
        names = tuple(dict.fromkeys(["base", *declared.experts]))
        return names, *split(_labelled(context, declared, names), declared.held_out)
    evaluated = context.manifest.stage(declared.outcomes)
    assert isinstance(evaluated, EvaluateStage)
    # An endpoint or a draft that was compared beside the experts is nothing a router can choose.
    names = tuple(each for each in evaluated.candidates if isinstance(each, str))
    return names, *split(_outcomes(context, declared.outcomes, names), declared.held_out)


def territory_prompts(context: RunContext, trained: Training) -> list[str]:
    """The first distinct prompts that an adapter was trained on."""
    rows = read_rows(context.folder(trained.data), part_of(trained, "data"))
    return first_distinct(last_user(row["messages"]) for row in rows)


def _labelled(context: RunContext, declared: RouterStage, names: tuple[str, ...]) -> Iterator[Lesson]:
    assert declared.prompts is not None
    for row in read_rows(context.folder(declared.prompts), part_of(declared, "prompts")):
        if row.get("expert") not in names:
            raise DataError(
                f"item '{row['item_id']}' of '{declared.prompts}' is for expert {row.get('expert')!r}; "
                f"give each row 'expert', one of: {', '.join(names)}"
            )
        quality = tuple(float(name == row["expert"]) for name in names)
        yield Lesson(last_user(row["messages"]), row["item_hash"], quality)


def _outcomes(context: RunContext, reference: str, names: tuple[str, ...]) -> Iterator[Lesson]:
    import pyarrow.parquet as pq

    folder = context.folder(reference)
    quality: dict[str, dict[str, float]] = {}
    for row in read_outcomes(folder):
        if row["variant"] is None:
            quality.setdefault(row["item_hash"], {})[row["expert"]] = row["quality"]
    for item in pq.read_table(folder / "items.parquet", columns=["item_hash", "prompt"]).to_pylist():
        if (digest := item["item_hash"]) not in quality:
            continue  # a perturbed one
        yield Lesson(item["prompt"], digest, tuple(quality[digest][name] for name in names))


def split(lessons: Iterable[Lesson], share: float) -> tuple[list[Lesson], list[Lesson]]:
    """Those to learn from, and the ``share`` of them that is held out, by hash."""
    sides: dict[bool, list[Lesson]] = {False: [], True: []}
    for lesson in lessons:
        # By the hash's other end: its beginning has decided which part of a dataset the row is in.
        sides[is_test(lesson.digest[::-1], share)].append(lesson)
    for held_out, side in sides.items():
        if not side:
            total, word = sum(map(len, sides.values())), "hold out" if held_out else "learn from"
            raise DataError(
                f"held_out {share} leaves none of {total} prompts to {word}; add some or change it"
            )
    return sides[False], sides[True]


def qualities(lessons: Sequence[Lesson]) -> Any:
    """N prompts x E experts."""
    import numpy as np

    return np.array([lesson.quality for lesson in lessons], np.float32)


def sample(lessons: Sequence[Lesson], number: int) -> list[int]:
    """Places of the prompts with the smallest hashes: the same ones in every order."""
    return list(islice(sorted(range(len(lessons)), key=lambda place: lessons[place].digest), number))
