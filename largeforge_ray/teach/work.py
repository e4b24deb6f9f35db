"""What a farm does: rows to make of items, and the recipe that says how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.types import GenerateRequest, Generation


@dataclass(frozen=True, slots=True)
class Work:
    """One row to make: its key, the request that makes it, and the item it came from."""

    row_key: str
    request: GenerateRequest
    item: dict[str, Any]


class Recipe(ABC):
    """What is asked of an item, and what becomes of the answers. It is pickled to wherever it is followed."""

    @abstractmethod
    def work(self, item: dict[str, Any]) -> list[Work]:
        """The rows to make of an item; the same ones whenever it is asked."""

    def follow(self, work: Work, made: Sequence[Generation]) -> GenerateRequest | None:
        """The next request of a row that takes several, given the answers so far; None after the last."""
        return None

    @abstractmethod
    def row(self, work: Work, made: Sequence[Generation]) -> dict[str, Any]:
        """The row, with ``row_key`` and ``error``; the last of ``made`` may be an error.

        It is called in several threads at once, and may take as long as a check takes.
        """

    @abstractmethod
    def numbers(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the progress line counts: ``failed``, ``kept``, ``tokens``, ``prompt`` and of it ``cached``
        tokens, ``usd``."""
