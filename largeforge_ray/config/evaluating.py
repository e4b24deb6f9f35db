"""What an ``evaluate`` stage may say: who answers, what is asked, and what is looked for in the answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from largeforge_ray.config.base import Name, OnCluster, Ref, Strict
from largeforge_ray.config.speculation import Speculation
from largeforge_ray.config.tasks import TaskEntry
from largeforge_ray.config.teaching import Endpoint, Price


class Candidate(Strict):
    """An expert that is no stage by itself: a model with a draft's help, or what answers at an endpoint."""

    name: Name
    model: Ref = "base"
    speculation: Speculation | None = None
    endpoint: Endpoint | None = None

    @model_validator(mode="after")
    def _is_no_stage(self) -> Candidate:
        if self.name == "base":
            raise ValueError("'base' names the manifest's model; give the expert another name")
        if (self.speculation is None) == (self.endpoint is None):
            raise ValueError(
                f"candidate '{self.name}' needs speculation or endpoint, and not both; a stage is named alone"
            )
        if self.endpoint is not None and self.model != "base":
            raise ValueError(
                f"candidate '{self.name}' answers at its endpoint; leave out model '{self.model}'"
            )
        return self


class ContaminationCheck(Strict):
    """Marks items that share words in a row with what a candidate was trained on, Brown et al. 2020
    (arXiv:2005.14165), appendix C."""

    n: int = Field(13, ge=2, le=50, description="Words in a row; shorter items are compared as a whole.")
    policy: Literal["mark"] = Field("mark", description="A gate decides what becomes of marked items.")


def _who(value: Any) -> str:
    return "stage" if isinstance(value, str) else "expert"


class EvaluateStage(OnCluster):
    """Every candidate answers every item once: the outcome matrix."""

    makes: ClassVar[str] = "outcomes"
    kind: Literal["evaluate"]
    candidates: list[
        Annotated[Annotated[Ref, Tag("stage")] | Annotated[Candidate, Tag("expert")], Discriminator(_who)]
    ] = Field(min_length=1)
    items: Ref | None = None
    tasks: list[TaskEntry] = Field([])
    max_tokens: int = Field(128, ge=1, description="Of an answer to one of ``items``; tasks have their own.")
    temperature: float = Field(
        0.8, gt=0.0, le=2.0, description="Of answers to a task that has several samples."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    prices: dict[Name, Price] = Field({}, description="By candidate: what an answer here would cost.")
    contamination: ContaminationCheck | None = None
    engines: int = Field(1, ge=1, description="Engines at once. It changes the time and nothing else.")
    scorers: int = Field(1, ge=1, description="As engines, of those that score choices.")
    seed: int = 0

    @property
    def named(self) -> tuple[Candidate, ...]:
        """Every candidate as one with a name; a stage has its own and no speculation or endpoint."""
        return tuple(
            Candidate.model_construct(name=each, model=each) if isinstance(each, str) else each
            for each in self.candidates
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.named)

    @property
    def drawn(self) -> dict[str, tuple[int, float]]:
        """Number and temperature of the answers to each item of a task, where there are several."""
        return {task.name: (task.samples, self.temperature) for task in self.tasks if task.samples > 1}

    @property
    def answers_in_words(self) -> str | None:
        """A candidate that cannot say how likely a text is: one that answers at an endpoint."""
        return next((each.name for each in self.named if each.endpoint is not None), None)

    @property
    def reads_base(self) -> bool:
        return any(each.endpoint is None for each in self.named)

    def references(self) -> dict[str, str]:
        read = {} if self.items is None else {"items": self.items}
        for i, each in enumerate(self.candidates):
            field, model = ("", each) if isinstance(each, str) else (".model", each.model)
            if model != "base":
                read[f"candidates.{i}{field}"] = model
        return read

    def settings(self) -> dict[str, Any]:
        kept = self.model_dump(mode="json", include={"kind", "max_tokens", "confidence", "seed"})
        # Left out where they say nothing, so that what was made before there were any keeps its key.
        kept |= self.model_dump(
            mode="json", include={"tasks", "contamination", "prices"}, exclude_defaults=True
        )
        if self.drawn:
            kept["temperature"] = self.temperature
        experts = {each.name: _settings(each) for each in self.candidates if isinstance(each, Candidate)}
        return kept | ({"experts": experts} if experts else {})

    @model_validator(mode="after")
    def _distinct(self) -> EvaluateStage:
        if len(set(self.names)) != len(self.names):
            raise ValueError("candidates name one expert twice; list each once")
        tasks = [task.name for task in self.tasks] + [str(self.items).partition(".")[0]]
        if twice := next((name for name in tasks if tasks.count(name) > 1), None):
            raise ValueError(f"tasks and items name '{twice}' twice; list it once, or rename your own")
        return self

    @model_validator(mode="after")
    def _prices_are_of_candidates(self) -> EvaluateStage:
        if unknown := sorted(set(self.prices) - set(self.names)):
            raise ValueError(
                f"prices name '{unknown[0]}', which is no candidate; use one of: {', '.join(self.names)}"
            )
        return self

    @model_validator(mode="after")
    def _something_is_asked(self) -> EvaluateStage:
        if self.items is None and not self.tasks:
            raise ValueError("neither items nor tasks are given; name a dataset, tasks, or both")
        return self


def _settings(expert: Candidate) -> dict[str, Any]:
    """Of an endpoint only who answers counts, not how often it may be asked."""
    if expert.endpoint is not None:
        return {"endpoint": [expert.endpoint.url, expert.endpoint.model]}
    return expert.model_dump(mode="json", include={"speculation"})
