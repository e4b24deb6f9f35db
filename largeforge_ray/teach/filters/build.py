"""A stage's filters as one function of a prompt and an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.config.filters import Filter
from largeforge_ray.errors import ConfigError
from largeforge_ray.teach.filters.pii import pii
from largeforge_ray.teach.filters.refusal import refusal
from largeforge_ray.teach.filters.surface import charset, language, length, repetition
from largeforge_ray.types import Verdict

Contaminated = Callable[[str], str | None]
"""A text to the reason why nothing may be trained on it, None if there is none."""

CHECKS: dict[str, Callable[[Any, str], str | None]] = {
    "length": length,
    "charset": charset,
    "language": language,
    "refusal": lambda _, text: refusal(text),
    "repetition": repetition,
}


def build_filters(
    configs: Sequence[Filter], contaminated: Contaminated | None = None
) -> Callable[[str, str], tuple[str, Verdict | None]]:
    """A function of prompt and answer to the answer, perhaps scrubbed, and the verdict of who refuses it.

    Filters see the answer as those before left it, and only ``contaminated`` the prompt. The function is
    picklable if ``contaminated`` is. ``duplicate`` compares rows, so it is left to ``NearDuplicates``.

    Raises ``ConfigError`` if a filter is ``contamination`` and ``contaminated`` is missing.
    """
    if contaminated is None and any(c.name == "contamination" for c in configs):
        raise ConfigError(
            "filter 'contamination' has nothing to compare with; give build_filters contaminated, "
            "made of ContaminationIndex.overlap"
        )
    return _Filters(tuple(c for c in configs if c.name != "duplicate"), contaminated)


@dataclass(frozen=True, slots=True)
class _Filters:
    configs: tuple[Filter, ...]
    contaminated: Contaminated | None

    def __call__(self, prompt: str, answer: str) -> tuple[str, Verdict | None]:
        for config in self.configs:
            if config.name == "pii":
                answer, reason = pii(config, answer)
            elif config.name == "contamination":
                assert self.contaminated is not None
                reason = self.contaminated(prompt) or self.contaminated(answer)
            else:
                reason = CHECKS[config.name](config, answer)
            if reason is not None:
                return answer, Verdict(False, config.name, reason)
        return answer, None
