"""What a ``student`` stage may say: which of the base's layers a smaller model starts from."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from largeforge_ray.config.base import StageBase
from largeforge_ray.errors import ConfigError


class StudentStage(StageBase):
    """The base with some of its layers, Shleifer and Rush 2020 (arXiv:2010.13002): a smaller model to train.

    A number of layers is spread as widely as possible, from the first to the last.
    """

    makes: ClassVar[str] = "model"
    kind: Literal["student"]
    layers: int | list[int] = Field(description="How many of the base's layers, or their numbers from 0.")

    def references(self) -> dict[str, str]:
        return {}

    @model_validator(mode="after")
    def _layers_are_some_in_order(self) -> StudentStage:
        if isinstance(self.layers, int):
            if self.layers < 2:
                raise ValueError(
                    f"layers {self.layers} has no room for the base's first and last layer; "
                    "give 2 or more, or name the layers in a list"
                )
            return self
        if not self.layers:
            raise ValueError("layers [] leaves no layer; name some, or give a number")
        if self.layers[0] < 0:
            raise ValueError(f"layers names {self.layers[0]}, and the first layer is 0; count from the front")
        for one, next_ in pairwise(self.layers):
            if one >= next_:
                fault = f"names {one} twice" if one == next_ else f"has {next_} after {one}"
                raise ValueError(f"layers {fault}, and layers keep their order; list each once, ascending")
        return self

    def chosen(self, total: int) -> tuple[int, ...]:
        """The layers that stay of a base with ``total``. Raises ``ConfigError`` if it does not have them."""
        if isinstance(self.layers, list):
            if self.layers[-1] >= total:
                raise ConfigError(
                    f"layers of stage '{self.name}' names {self.layers[-1]}, and the base has layers 0 to "
                    f"{total - 1}; leave it out"
                )
            return tuple(self.layers)
        if self.layers > total:
            raise ConfigError(
                f"layers {self.layers} of stage '{self.name}' exceeds the {total} layers of the base; "
                f"give {total} or less"
            )
        return tuple(round(i * (total - 1) / (self.layers - 1)) for i in range(self.layers))
