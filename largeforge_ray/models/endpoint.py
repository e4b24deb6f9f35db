"""An OpenAI-compatible server as an engine (read in openai 3.54 and its transport httpx2 2.16).

Limits, retries and spending are kept here, so one engine serves all callers of an endpoint: two would
each use the limits up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from largeforge_ray.config.teaching import Endpoint
from largeforge_ray.errors import BudgetError, ConfigError
from largeforge_ray.models.rate import RateLimit, asked_wait_s, retry_wait_s
from largeforge_ray.models.spend import Spend, cost_usd
from largeforge_ray.types import GenerateRequest, Generation

CONNECT_S = 5.0
LONGEST_ASKED_S = 120.0
"""A server that asks for more has run out of something that a stage does not wait for."""
TEMPLATE_TOKENS, TURN_TOKENS = 64, 16
"""What a chat template may add to a prompt, and to each of its turns."""
TOLD_CHARS = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why an attempt brought no answer. One that is ``lost`` may have been answered, and billed, unseen."""

    reason: str
    again: bool = False
    asked_s: float | None = None
    lost: bool = False


class EndpointEngine:
    """Requests to one endpoint, within its limits. ``spent_usd`` is what earlier runs have spent.

    The key is read from its variable with every request and kept in no object of ours.
    """

    def __init__(self, config: Endpoint, spent_usd: float = 0.0) -> None:
        from openai import AsyncOpenAI, Timeout

        self._config = config
        # The whole request has one time limit, `timeout_s`; of the transport's own, which start anew with
        # every byte, only the one to connect is of use.
        self._client: Any = AsyncOpenAI(
            base_url=config.url, api_key=self._key, max_retries=0, timeout=Timeout(None, connect=CONNECT_S)
        )
        self._slots = asyncio.Semaphore(config.concurrency)
        self._rate = RateLimit(config.requests_per_minute, config.tokens_per_minute)
        self._turn = asyncio.Lock()
        self._spend = Spend(config.max_usd, spent_usd)
        self._settled = asyncio.Event()

    @property
    def slots(self) -> int:
        """Requests under way at once."""
        return self._config.concurrency

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answer all requests, in their order. One that cannot be answered comes back with ``error`` set.

        All or none of them are sent, so what was paid for is always returned. ``usd`` of an answer includes
        the most that lost attempts at it can have cost.

        Raises:
            BudgetError: all of them together might cost more than ``max_usd`` leaves.
            ConfigError: there is no key, or the server refuses it.
        """
        most = [self._most_usd(r) for r in requests]
        while not self._spend.hold(most):
            if not self._spend.is_pending:
                raise BudgetError(
                    f"{self._config.model} at {self._config.url}: {self._spend.spent_usd:.6f} of max_usd "
                    f"{self._config.max_usd:g} is spent and the next {len(most)} requests may cost "
                    f"{sum(most):.6f}; raise max_usd and run again; finished rows are kept"
                )
            self._settled.clear()
            await self._settled.wait()
        return list(await asyncio.gather(*(self._one(r, usd) for r, usd in zip(requests, most, strict=True))))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _one(self, request: GenerateRequest, most_usd: float) -> Generation:
        """One answer, or the last reason why there is none. ``most_usd`` is held for the first attempt."""
        attempt, lost_usd = 0, 0.0
        async with self._slots:
            while True:
                attempt += 1
                came = await self._attempt(request, most_usd)
                if isinstance(came, Generation):
                    return replace(came, usd=came.usd + lost_usd)
                lost_usd += most_usd if came.lost else 0.0
                ended = self._hold_again(came, attempt, most_usd)
                if ended:
                    return Generation(request.request_id, usd=lost_usd, error=ended)
                wait = retry_wait_s(attempt, came.asked_s, random.random())
                _log.info(
                    "request %s retry=%d waits %.1f s: %s", request.request_id, attempt, wait, came.reason
                )
                await asyncio.sleep(wait)

    async def _attempt(self, request: GenerateRequest, most_usd: float) -> Generation | _Refusal:
        """Send once, when the rates allow it, and settle what was held and counted for it."""
        most_tokens = _most_prompt_tokens(request) + request.sampling.max_tokens
        usd, tokens = most_usd, most_tokens
        try:
            async with self._turn:
                while (wait := self._rate.wait_s(time.monotonic(), most_tokens)) > 0:
                    await asyncio.sleep(wait)
            came = await self._send(request)
            if isinstance(came, Generation):
                usd, tokens = came.usd, came.prompt_tokens + came.completion_tokens or most_tokens
            elif not came.lost:
                usd, tokens = 0.0, 0
            return came
        finally:
            self._rate.correct(most_tokens, tokens)
            self._spend.settle(most_usd, usd)
            self._settled.set()

    def _hold_again(self, refusal: _Refusal, attempt: int, most_usd: float) -> str | None:
        """Hold the cost of another attempt, or say why there is none."""
        if not refusal.again:
            return refusal.reason
        last, asked_s = self._config.retries + 1, refusal.asked_s or 0.0
        if asked_s > LONGEST_ASKED_S:
            why = f"the wait it asks for, {asked_s:.0f} s, exceeds {LONGEST_ASKED_S:g}; ask less of it"
        elif attempt == last:
            why = f"attempt {attempt} of {last}; raise retries or timeout_s, or lower concurrency"
        elif not self._spend.hold([most_usd]):
            why = f"max_usd {self._config.max_usd} leaves too little for another attempt; raise it"
        else:
            return None
        return f"{refusal.reason}; {why}"

    async def _send(self, request: GenerateRequest) -> Generation | _Refusal:
        from httpx2 import ConnectError, ConnectTimeout
        from openai import APIConnectionError, APIStatusError

        # A config names no adapter and asks for no token ids where the teacher is an endpoint.
        assert request.adapter is None
        assert request.prompt_ids is None
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                completion = await self._create(request)
        except TimeoutError:
            return _Refusal(f"no answer within {self._config.timeout_s:g} s", again=True, lost=True)
        except APIConnectionError as error:
            unsent = isinstance(error.__cause__, ConnectError | ConnectTimeout)
            reason = f"connection to {self._config.url} {'failed' if unsent else 'lost'}: {error.__cause__!r}"
            return _Refusal(self._told(reason), again=True, lost=not unsent)
        except APIStatusError as error:
            return self._refused(error)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return _Refusal(f"the answer is no JSON: {error}", lost=True)
        return self._read(request, completion, time.monotonic() - started)

    async def _create(self, request: GenerateRequest) -> Any:
        s = request.sampling
        given: dict[str, Any] = {
            "model": self._config.model,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "max_tokens": s.max_tokens,
            "seed": s.seed,
        }
        if request.stop:
            given["stop"] = list(request.stop)
        if request.context is not None:
            return await self._client.completions.create(prompt=request.context, **given)
        return await self._client.chat.completions.create(messages=list(request.messages), **given)

    def _refused(self, error: Any) -> _Refusal:
        """What a status other than 2xx means. Raises ``ConfigError`` if it is the key that is refused."""
        status, body = error.status_code, error.body
        message = body.get("message", body) if isinstance(body, dict) else body
        reason = self._told(f"HTTP {status}: {message}")
        if status in (401, 403):
            # Of a 401 servers tell parts of the key.
            told = "HTTP 401" if status == 401 else reason
            fix = (
                f"set {self._config.key_env} to a key that may use model '{self._config.model}'"
                if self._config.key_env
                else "it asks for a key: set key_env to the name of the variable that holds it"
            )
            raise ConfigError(f"{self._config.url} refuses access ({told}); {fix}") from None
        # Behind a gateway that timed out the answer may have been made.
        again, lost = status in (408, 409, 429) or status >= 500, status == 504
        return _Refusal(reason, again, asked_wait_s(error.response.headers, time.time()), lost)

    def _read(self, request: GenerateRequest, completion: Any, seconds: float) -> Generation | _Refusal:
        """The answer in a reply. The client checks no types, and some servers send errors with status 200."""
        choice = (getattr(completion, "choices", None) or [None])[0]
        said = choice if request.context is not None else getattr(choice, "message", None)
        if said is None:
            return _Refusal(self._told(f"the reply holds no answer: {completion}"), lost=True)
        usage = completion.usage
        return Generation(
            request_id=request.request_id,
            text=(said.content if request.context is None else getattr(said, "text", None)) or "",
            finish_reason=choice.finish_reason,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            seconds=seconds,
            usd=cost_usd(self._config.price, usage.prompt_tokens, usage.completion_tokens)
            if usage
            else self._most_usd(request),
            cached_tokens=getattr(usage and usage.prompt_tokens_details, "cached_tokens", None) or 0,
        )

    def _most_usd(self, request: GenerateRequest) -> float:
        return cost_usd(self._config.price, _most_prompt_tokens(request), request.sampling.max_tokens)

    async def _key(self) -> str:
        """Raises ``ConfigError`` unless the variable holds what can be sent as a key."""
        name = self._config.key_env
        if name is None:
            return "none"
        key = _key_in(name)
        if not (key and key.isascii() and key.isprintable()):
            raise ConfigError(
                f"key_env '{name}' {'holds no key' if key else 'is not set'} where the endpoint is asked; "
                "export it before Ray starts there"
            )
        return key

    def _told(self, text: str) -> str:
        """What may be told of a server's words: they can hold the key."""
        key = _key_in(self._config.key_env) if self._config.key_env else ""
        return (text.replace(key, "[key]") if key else text)[:TOLD_CHARS]


def _key_in(variable: str) -> str:
    # A line's end belongs to the file the key came from.
    return os.environ.get(variable, "").strip()


def _most_prompt_tokens(request: GenerateRequest) -> int:
    """No token is shorter than a byte. What a server adds unasked, above a template, is not known here."""
    turns = sum(len(m["content"].encode()) + TURN_TOKENS for m in request.messages)
    return turns + len((request.context or "").encode()) + TEMPLATE_TOKENS
