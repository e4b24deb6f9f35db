"""What a ``merge`` stage may say, and which adapters can be merged at all."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from largeforge_ray.config.base import Ref, StageBase
from largeforge_ray.config.training import Training


class MergeStage(StageBase):
    """Add an adapter's weights to its base's: a model of its own, with nothing left to compute beside it."""

    makes: ClassVar[str] = "model"
    kind: Literal["merge"]
    adapter: Ref
    dequantize: bool = Field(
        False, description="Merge into the base as NF4 rounded it, which a QLoRA adapter was trained on."
    )

    def references(self) -> dict[str, str]:
        return {"adapter": self.adapter}

    def refusal(self, trained: StageBase) -> str | None:
        """Why what the stage ``trained`` makes cannot be merged, None if it can."""
        if not isinstance(trained, Training):
            return None
        if trained.lora is None:
            return (
                f"'{trained.name}' trains every weight (lora: null) and makes a whole model, so there is "
                "nothing to merge; name it where the merged model was wanted"
            )
        if trained.algorithm.name == "reward":
            return (
                f"'{trained.name}' makes a reward model, whose head the base has no place for; "
                "name a stage of another algorithm"
            )
        if trained.lora.quantize and not self.dequantize:
            return (
                f"'{trained.name}' is trained on the base rounded to {trained.lora.quantize} and would meet "
                "other weights in the base as it is; set dequantize: true, which merges into the rounded base"
            )
        if self.dequantize and not trained.lora.quantize:
            return (
                f"dequantize is true, but '{trained.name}' is trained on the base as it is (lora.quantize: "
                "null); remove dequantize"
            )
        return None
