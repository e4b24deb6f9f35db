"""Critique and revision by a constitution, Bai et al. 2022 (arXiv:2212.08073)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from largeforge_ray.config.base import Strict
from largeforge_ray.errors import ConfigError
from largeforge_ray.teach.prompts import draw, number, show_teacher
from largeforge_ray.teach.recipe import AnswerRecipe
from largeforge_ray.teach.work import Work
from largeforge_ray.types import GenerateRequest, Generation

SHIPPED = Path(__file__).with_name("constitution.yaml")


class Principle(Strict):
    """What to look for in an answer, and how to mend it."""

    name: str = Field(min_length=1)
    critique: str = Field(min_length=1)
    revision: str = Field(min_length=1)


class Constitution(Strict):
    """Principles, one of which is drawn for every round of every answer."""

    principles: list[Principle] = Field(min_length=1)


def load_constitution(path: Path | None) -> Constitution:
    """Read a constitution; ours if no path is given. Raises ``ConfigError`` for one that is none."""
    import yaml

    path = path or SHIPPED
    try:
        return Constitution.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"constitution '{path}' cannot be read: {error}; check the path, relative to the manifest"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"constitution '{path}': {where}: {first['msg'].lower()}; it is a mapping with principles, each "
            "with name, critique and revision"
        ) from None


@dataclass(frozen=True)
class RevisionRecipe(AnswerRecipe):
    """Answer, then ``rounds`` times a critique by a principle and a revision. ``turns`` are all but the
    last."""

    principles: tuple[Principle, ...] = ()
    rounds: int = 1

    def follow(self, work: Work, made: Sequence[Generation]) -> GenerateRequest | None:
        if len(made) > 2 * self.rounds:
            return None
        round_, revising = divmod(len(made) - 1, 2)
        principle = self.principles[number(work.row_key, round_) % len(self.principles)]
        shown = show_teacher(work.item["messages"], self.teacher)
        said = [*shown, {"role": "assistant", "content": made[2 * round_].text}]
        said.append({"role": "user", "content": f"{principle.critique} Only criticise; do not answer anew."})
        if revising:
            said.append({"role": "assistant", "content": made[-1].text})
            last = f"{principle.revision} Write the whole revised answer and nothing else."
            said.append({"role": "user", "content": last})
        sampling = draw(self.sampling, work.row_key, len(made))
        return GenerateRequest(f"{work.row_key}-{len(made)}", tuple(said), sampling, self.adapter)

    def read(self, made: Sequence[Generation]) -> dict[str, Any]:
        return {"text": made[-1].text}
