"""What a ``gate`` may say: when what was measured allows a candidate to take the baseline's place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from largeforge_ray.config.base import Name, Ref, Strict

Points = Annotated[float, Field(ge=0.0, le=1.0)]


class Gate(Strict):
    """Pass only if the paired gain over ``against`` is as good as asked, and nothing named here got worse.

    The interval of the mean gain must lie above ``min_gain``, 0 if neither is given, or above -``max_loss``.
    Of several tasks each counts the same.
    Losses are of mean quality, so 0.02 is two points of a hundred.
    """

    outcomes: Ref
    against: Name = Field("base", description="The expert that is compared with.")
    metric: str = Field("quality", min_length=1, description="quality, or a name in the outcomes' scores.")
    min_gain: float | None = Field(None, ge=-1.0, le=1.0)
    max_loss: Points | None = Field(None, description="For a candidate that is cheaper and no worse.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    matched_cost: float | None = Field(
        None, gt=0.0, description="Mean cost of an item at most, as a multiple of the baseline's."
    )
    floors: dict[str, Points] = Field({}, description="Task, or task/slice: the most it may lose.")
    slice_floor: Points | None = Field(None, description="The most that any other slice may lose.")
    slice_min_items: int = Field(20, ge=1, description="Of fewer items a mean says too little for a floor.")
    contamination: Literal["allow", "exclude", "refuse"] = Field(
        "exclude", description="What becomes of items that stand in what an expert was trained on."
    )

    @property
    def least_gain(self) -> float:
        """What the interval must lie above."""
        return 0.0 - self.max_loss if self.max_loss is not None else self.min_gain or 0.0

    def settings(self) -> dict[str, Any]:
        """What decides, for the key: the outcomes are a parent."""
        rules = self.model_dump(
            mode="json", exclude={"outcomes", "min_gain", "max_loss"}, exclude_defaults=True
        )
        return {"min_gain": self.least_gain, "confidence": self.confidence} | rules

    @model_validator(mode="after")
    def _one_bound_on_the_gain(self) -> Gate:
        if self.min_gain is not None and self.max_loss is not None:
            raise ValueError(
                f"min_gain {self.min_gain} and max_loss {self.max_loss} both bound the gain; give one of them"
            )
        return self
