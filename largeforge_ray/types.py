"""Frozen, picklable values that cross processes. They hold data and derive nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
"""One chat turn: ``{"role": "system" | "user" | "assistant", "content": text}``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. ``temperature`` 0 is greedy; ``seed`` fixes the draw."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 128
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt for an engine. ``adapter`` is a PEFT folder, or None for the model itself.

    ``prompt_ids`` are the prompt as token ids, in the place of ``messages``, and ``context`` is one that no
    chat template is put around. An answer ends before any of ``stop``. ``topk`` asks for the most likely
    tokens at every place of the answer, and 0 for the answer's ids and log-probabilities alone.
    """

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    adapter: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    topk: int | None = None
    context: str | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The k likeliest tokens at each of T places: ``ids_TK`` int32, ``logps_TK`` float16, likeliest first.

    ``tail_T`` is the log of what the others have together, float16. All at temperature 1.
    """

    ids_TK: Any
    logps_TK: Any
    tail_T: Any


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished answer, or the reason there is none (``error``).

    ``seconds`` are its part of an engine's time, shared evenly by the requests under way at each moment, so
    those of a batch add up to the time it took; of an endpoint they are the time until its answer.
    ``logprobs`` are of each of ``token_ids``, which end with the token that ended the answer; both and
    ``mean_logprob`` are given where the request gave its prompt as ids or asked for ``topk``. ``usd`` is what
    it cost, and of the prompt's tokens ``cached_tokens`` had been computed for another request.
    """

    request_id: str
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    mean_logprob: float | None = None
    error: str | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    likeliest: Likeliest | None = None
    usd: float = 0.0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A sequence to be scored as it stands. ``adapter`` is a PEFT folder, or None for the model itself."""

    request_id: str
    token_ids: tuple[int, ...]
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The log-probability of every token after the first, or the reason there is none (``error``)."""

    request_id: str
    logprobs: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """Continuations to be compared after one prompt: plain text in ``context``, or a chat in ``messages``.

    ``adapter`` is a PEFT folder, or None for the model itself.
    """

    request_id: str
    choices: tuple[str, ...]
    context: str | None = None
    messages: tuple[Message, ...] | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """For each choice the sum of its tokens' log-probabilities and whether each token was the likeliest one.

    ``error`` is the reason there is none. ``completion_tokens`` are those of all choices, ``seconds`` the
    request's share of the time its tokens were computed in, together with others'.
    """

    request_id: str
    logprobs: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a row is kept, which check said so, and why."""

    kept: bool
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Which expert a request goes to and why. ``scores`` maps expert name to 0..1."""

    request_id: str
    policy: str
    chosen: str
    reason: str
    runner_up: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    confidence: float = 1.0
    predicted_wait_s: float | None = None
    fell_back: bool = False


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One line of a run's ``events.jsonl``. ``time`` is seconds since the epoch.

    ``kind`` is planned, started, progress, finished, failed or cached.
    """

    time: float
    run: str
    stage: str
    kind: str
    numbers: dict[str, Any] = field(default_factory=dict)
    message: str = ""
