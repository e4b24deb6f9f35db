"""vLLM's scheduler, which switches speculation off while it does not pay.

This is the one file that follows vLLM's scheduler, which it calls no public interface. It was read in the
version below, in ``v1/core/sched/{scheduler,async_scheduler}.py``, ``v1/engine/core.py`` and
``v1/worker/gpu_model_runner.py``, which the CPU's runner inherits; a test fails when the version moves.

What costs nothing to draft (n-grams, suffixes) is drafted always. While an expert's speculation is off its
drafts are dropped instead of verified, and compared with what the model then says, so the acceptance rate
stays known. A draft model or head is told to draft none, by vLLM's own table of tokens by batch size; it
still runs once a step, to keep its cache. There the engine speculates for all experts or for none.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from largeforge_ray.models.spec_control import Controller

READ_IN_VLLM = "0.29.0"
WATCHED = ("ngram", "suffix")
ALL = ""
"""The only expert of an engine whose drafts cannot be watched, and everyone who asks for the base."""


@dataclass(slots=True)
class Dropped:
    """A draft that is not verified, and how many of its tokens the model has said since."""

    tokens: list[int]
    said: int = 0

    def over(self, said: list[int]) -> bool:
        """Whether the model's next tokens decide about the draft."""
        for token in said:
            if token != self.tokens[self.said]:
                return True
            self.said += 1
            if self.said == len(self.tokens):
                return True
        return False


def scheduler(**given: Any) -> Any:
    """vLLM's ``scheduler_cls``, which it only calls: around the class that it would have chosen itself."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    config = given["vllm_config"]
    chosen = AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler
    return type(f"Switching{chosen.__name__}", (_Switching, chosen), {})(**given)


class _Switching:
    """Put before vLLM's class: what it does, and what a step took and drafted."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        here: Any = self
        self._watched = here.vllm_config.speculative_config.method in WATCHED
        self._tokens: list[int] = here.dynamic_sd_lookup
        self._control = Controller()
        self._dropped: dict[str, Dropped] = {}
        self._begun: deque[float] = deque()
        self._ended = 0.0
        self._settle(1)

    def schedule(self, *given: Any, **named: Any) -> Any:
        self._begun.append(time.perf_counter())
        here: Any = super()
        return here.schedule(*given, **named)

    def update_from_output(self, step: Any, output: Any) -> Any:
        now = time.perf_counter()
        # The step before may have ended after this one was scheduled, when they overlap.
        seconds, self._ended = now - max(self._begun.popleft(), self._ended), now
        self._see(step, output, seconds)
        here: Any = super()
        return here.update_from_output(step, output)

    def _see(self, step: Any, output: Any, seconds: float) -> None:
        if not step.num_scheduled_tokens:
            return
        verified = step.scheduled_spec_decode_tokens
        for name in step.finished_req_ids:
            self._dropped.pop(name, None)
        for name in step.num_scheduled_tokens:
            row = output.req_id_to_index.get(name)
            said = output.sampled_token_ids[row] if row is not None and output.sampled_token_ids else []
            if said:
                self._see_request(name, said, len(verified.get(name, ())))
        requests, drafted = len(step.num_scheduled_tokens), sum(map(len, verified.values()))
        decoding = all(n == 1 + len(verified.get(r, ())) for r, n in step.num_scheduled_tokens.items())
        # The first step after a switch verifies drafts and makes none, or the reverse.
        if decoding and (self._watched or (drafted > 0) == (step.num_spec_tokens_to_schedule > 0)):
            self._control.see_step(requests, drafted, seconds)
        self._settle(requests)

    def _see_request(self, name: str, said: list[int], drafted: int) -> None:
        if drafted:
            self._control.see_draft(self._expert(name), drafted, len(said) - 1)
        elif (dropped := self._dropped.get(name)) and dropped.over(said):
            del self._dropped[name]
            self._control.see_draft(self._expert(name), len(dropped.tokens), dropped.said)

    def _expert(self, request: str) -> str:
        here: Any = self
        known = here.requests.get(request)
        adapter = known.lora_request if self._watched and known is not None else None
        return ALL if adapter is None else str(adapter.lora_name)

    def _settle(self, requests: int) -> None:
        self._control.settle(requests)
        if not self._watched:
            here: Any = self
            on = self._control.speculates(ALL)
            here.dynamic_sd_lookup = self._tokens if on else [0] * len(self._tokens)

    def update_draft_token_ids(self, drafts: Any) -> None:
        for row, (name, tokens) in enumerate(zip(drafts.req_ids, drafts.draft_token_ids, strict=True)):
            if self._control.speculates(self._expert(name)):
                self._dropped.pop(name, None)
            elif tokens:
                self._dropped.setdefault(name, Dropped(tokens))
                drafts.draft_token_ids[row] = []
        here: Any = super()
        here.update_draft_token_ids(drafts)
