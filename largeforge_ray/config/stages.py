"""The schema of each stage kind. Defaults live on the fields and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from largeforge_ray.config.base import OnCluster, Ref, Split, StageBase
from largeforge_ray.config.evaluating import EvaluateStage
from largeforge_ray.config.gate import Gate
from largeforge_ray.config.merging import MergeStage
from largeforge_ray.config.routing import EMBEDDER, RouterStage, Routing
from largeforge_ray.config.speculation import Speculation
from largeforge_ray.config.student import StudentStage
from largeforge_ray.config.sweeping import SweepStage
from largeforge_ray.config.teaching import TeachStage
from largeforge_ray.config.training import TrainStage


class DatasetStage(StageBase):
    """Read prompts or chats from a JSONL or Parquet file, or a folder of them."""

    makes: ClassVar[str] = "dataset"
    uses_model: ClassVar[bool] = False
    kind: Literal["dataset"]
    source: str = Field(min_length=1, description="File or folder, relative to the manifest.")
    split: Split = Split()

    def references(self) -> dict[str, str]:
        return {}


class ModelStage(StageBase):
    """Another model beside the manifest's: a teacher, or one to train or to compare with."""

    makes: ClassVar[str] = "model"
    uses_model: ClassVar[bool] = False
    kind: Literal["model"]
    source: str = Field(min_length=1)
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def references(self) -> dict[str, str]:
        return {}


class PromoteStage(OnCluster):
    """Check a candidate, prove it on the engine, and make it an expert beside the base model."""

    makes: ClassVar[str] = "router"
    kind: Literal["promote"]
    candidate: Ref
    gate: Gate
    max_lora_rank: int = Field(16, ge=1, le=512)
    policy: Routing = Routing()
    backend: Literal["vllm", "transformers"] = "vllm"
    speculation: Speculation | None = Field(None, description="Who drafts tokens for the model to verify.")
    embedder: Ref | None = EMBEDDER

    def references(self) -> dict[str, str]:
        others = {"policy.router": self.policy.router, "embedder": self.embedder}
        given = {field: ref for field, ref in others.items() if ref is not None}
        return {"candidate": self.candidate, "gate.outcomes": self.gate.outcomes} | given

    def settings(self) -> dict[str, Any]:
        kept = self.model_dump(mode="json", include={"kind", "max_lora_rank"}) | {
            "gate": self.gate.settings()
        }
        engine = self.model_dump(mode="json", include={"backend", "speculation"}, exclude_defaults=True)
        return kept | {"policy": self.policy.settings()} | engine


Stage = Annotated[
    DatasetStage
    | ModelStage
    | TeachStage
    | TrainStage
    | SweepStage
    | MergeStage
    | StudentStage
    | EvaluateStage
    | RouterStage
    | PromoteStage,
    Field(discriminator="kind"),
]
