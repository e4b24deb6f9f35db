"""A stage's filters as one function of a prompt and an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.config.filters import Filter
from largeforge_ray.teach.filters.contamination import ContaminationIndex, contamination
from largeforge_ray.teach.filters.pii import pii
from largeforge_ray.teach.filters.refusal import refusal
from largeforge_ray.teach.filters.surface import charset, language, length, repetition
from largeforge_ray.types import Verdict

CHECKS: dict[str, Callable[[Any, str], str | None]] = {
    "length": length,
    "charset": charset,
    "language": language,
    "refusal": lambda _, text: refusal(text),
    "repetition": repetition,
}


def build_filters(
    configs: Sequence[Filter], indexes: Sequence[ContaminationIndex] = ()
) -> Callable[[str, str], tuple[str, Verdict | None]]:
    """A picklable function of prompt and answer to the answer, perhaps scrubbed, and the verdict against it.

    Filters see the answer as those before left it, and only ``contamination`` the prompt. ``indexes`` are
    those of the ``contamination`` filters, in their order. ``duplicate`` compares rows, so it is left to
    ``NearDuplicates``.

    Raises ``ValueError`` if there are not as many indexes as ``contamination`` filters.
    """
    held = [i for i, config in enumerate(configs) if config.name == "contamination"]
    index_of = dict(zip(held, indexes, strict=True))
    return _Filters(tuple((c, index_of.get(i)) for i, c in enumerate(configs) if c.name != "duplicate"))


@dataclass(frozen=True, slots=True)
class _Filters:
    steps: tuple[tuple[Filter, ContaminationIndex | None], ...]

    def __call__(self, prompt: str, answer: str) -> tuple[str, Verdict | None]:
        for config, index in self.steps:
            if config.name == "pii":
                answer, reason = pii(config, answer)
            elif config.name == "contamination":
                assert index is not None
                reason = contamination(config, index, prompt, answer)
            else:
                reason = CHECKS[config.name](config, answer)
            if reason is not None:
                return answer, Verdict(False, config.name, reason)
        return answer, None
