"""The router's front: check the request, let the policy choose an expert, pass on its reply byte for byte."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import parse_qsl

from largeforge_ray.observe import logs, tracing
from largeforge_ray.routing import Expert, Observation, Policies, Router
from largeforge_ray.routing.breaker import Breaker
from largeforge_ray.routing.cascade import confidence, escalates
from largeforge_ray.routing.experts import AUTO
from largeforge_ray.routing.policy import ExpertState
from largeforge_ray.types import Decision
from serve_apps.admin import Admin
from serve_apps.cards import expert_cards, model_cards, standing
from serve_apps.chat_request import EMBEDS, parse_request, turns_of
from serve_apps.exchange import ClientLeft, Exchange
from serve_apps.kept import Kept, asked_for_logprobs
from serve_apps.keys import KeyRing
from serve_apps.meters import Meters, NoMeters
from serve_apps.openai_errors import (
    ApiError,
    ReplyHead,
    bad_request,
    expert_unavailable,
    internal,
    no_embedder,
    too_slow,
    unknown_model,
    unknown_path,
    wrong_method,
)
from serve_apps.page import page_files
from serve_apps.ports import Ask, Engine, Limits, Outlet
from serve_apps.table import Table
from serve_apps.trials import Tee, TrialBook, in_canary

logger = logging.getLogger("ray.serve")

CLIENT_LEFT = 499
"""What is counted for a reply whose client did not wait for its end; nginx's number."""
UNCOUNTED = {"/v1/experts", "/v1/models"}
"""Paths that need a key and are not counted against its rate: the page asks them every few seconds."""


class Front:
    """An ASGI application for one router. ``engines`` maps each expert's model key to its engine.

    ``canary_share`` of the clients an expert in canary would get do get it.
    """

    def __init__(
        self,
        router: Router,
        engines: Mapping[str, Engine],
        limits: Limits,
        *,
        keys: KeyRing | None = None,
        meters: Meters | None = None,
        admin: Admin | None = None,
        policies: Policies | None = None,
        canary_share: float = 0.25,
        cascade_confidence: float = 0.5,
    ) -> None:
        self._engines, self._limits, self._keys, self._admin = engines, limits, keys, admin
        self._meters = meters or NoMeters()
        self._breakers: dict[str, Breaker] = {}
        self._open_requests: Counter[str] = Counter()
        self._created = int(time.time())
        self._policies = policies or Policies()
        self._canary_share, self._cascade_confidence = canary_share, cascade_confidence
        self._page = page_files()
        self.trials = TrialBook()
        self._routes: dict[str, dict[str, Callable[[Exchange, str], Any]]] = {
            "/v1/chat/completions": {"POST": self._answer},
            "/v1/completions": {"POST": self._answer},
            EMBEDS: {"POST": self._embed},
            "/v1/route": {"POST": self._explain, "GET": self._explain_query},
            "/v1/models": {"GET": self._models},
            "/v1/experts": {"GET": self._experts},
            "/health": {"GET": self._health},
            "/ready": {"GET": self._ready},
            **{path: {"GET": self._file} for path in self._page},
        }
        self._open = {"/health", "/ready", *self._page}
        self.update(router)

    def update(self, router: Router, reasons: Mapping[str, str] | None = None) -> None:
        """Route by another table from now on; what is under way goes on. ``reasons`` say by version why an
        expert is in its state."""
        self._table, self._reasons = Table(router, self._policies), reasons or {}
        names = {e.name for e in (*router.served, *self._table.on_trial)}
        self._breakers = {name: self._breakers.get(name, Breaker()) for name in names}
        self.trials.keep(list(self._table.on_trial))

    def tell(self, replicas: Mapping[str, int]) -> None:
        """Let the meters know how things stand; ``replicas`` are by model."""
        self._meters.standing(self._open_requests, replicas)

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Every outcome is a reply, and every refusal has OpenAI's shape."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        given = exchange.header("x-request-id")
        request_id = given or f"chatcmpl-{uuid.uuid4().hex}"
        if not given:  # Serve's proxy gives one and echoes it; a second would reach the client as "a, a"
            exchange.added["x-request-id"] = request_id
        logs.configure(request_id=request_id)
        with tracing.span(f"{exchange.method} {exchange.path}", exchange.headers):
            tracing.note(request_id=request_id)
            await self._reply(exchange, request_id)

    async def _reply(self, exchange: Exchange, request_id: str) -> None:
        try:
            await self._dispatch(exchange, request_id)
        except ApiError as error:
            await exchange.reply(error.status, error.body(), error.headers)
        except ClientLeft:
            return
        except Exception:
            logger.exception("request %s failed", request_id)
            if not exchange.started:
                await exchange.reply(500, internal().body())

    async def _dispatch(self, exchange: Exchange, request_id: str) -> None:
        if self._admin is not None and exchange.path.startswith("/admin/"):
            await self._admin.answer(exchange)
            return
        if exchange.path not in self._routes:
            raise unknown_path(exchange.path, [path for path in self._routes if path not in self._page])
        methods = self._routes[exchange.path]
        if exchange.method not in methods:
            raise wrong_method(exchange.method, exchange.path, list(methods))
        with self._let_in(exchange):
            await methods[exchange.method](exchange, request_id)

    @contextmanager
    def _let_in(self, exchange: Exchange) -> Any:
        if self._keys is None or exchange.path in self._open:
            yield
            return
        counted = exchange.path not in UNCOUNTED
        name = self._keys.enter(exchange.header("authorization"), counted=counted)
        try:
            yield
        finally:
            self._keys.leave(name)

    async def _read(self, exchange: Exchange, path: str) -> tuple[bytes, dict[str, Any]]:
        body = await exchange.body(self._limits.max_body_bytes)
        kind = exchange.header("content-type")
        return body, parse_request(body, kind, path, max_tokens=self._limits.max_tokens)

    async def _explain(self, exchange: Exchange, request_id: str) -> None:
        _, payload = await self._read(exchange, "/v1/chat/completions")
        await self._tell(exchange, payload, request_id)

    async def _explain_query(self, exchange: Exchange, request_id: str) -> None:
        query = dict(parse_qsl(exchange.query.decode("latin-1")))
        if not query.get("prompt"):
            raise bad_request("the query wants ?prompt=TEXT, and model=NAME if it is not auto", "prompt")
        await self._tell(exchange, {"model": query.get("model", AUTO), "prompt": query["prompt"]}, request_id)

    async def _tell(self, exchange: Exchange, payload: Mapping[str, Any], request_id: str) -> None:
        expert, decision = self._decide(payload, request_id)
        await exchange.json(asdict(decision) | {"artifact": expert.artifact})

    async def _answer(self, exchange: Exchange, request_id: str) -> None:
        body, payload = await self._read(exchange, exchange.path)
        expert, decision = self._decide(payload, request_id)
        self._meters.decided(decision)
        ask = Ask(exchange.path, expert, body)
        seen = Observation(request_id, turns_of(payload))
        trial = self._table.trial(decision, seen, self._states()) if self._table.on_trial else None
        with exchange.unless_left():
            if decision.policy == "cascade":
                await self._cascade(exchange, ask, payload, decision)
            elif trial is None:
                await self._pass_on(exchange, ask, decision)
            elif trial.state == "canary" and in_canary("".join(seen.turns[:1]), self._canary_share):
                await self._canary(exchange, ask, trial, decision)
            else:
                await self._beside_trial(exchange, ask, trial, decision)

    async def _embed(self, exchange: Exchange, request_id: str) -> None:
        body, payload = await self._read(exchange, exchange.path)
        expert = self._table.router.embedder
        if expert is None:
            raise no_embedder()
        if payload["model"] not in (AUTO, expert.name):
            raise unknown_model(payload["model"], [AUTO, expert.name])
        only = Decision(request_id, "pinned", expert.name, "it is the one that embeds")
        with exchange.unless_left():
            await self._pass_on(exchange, Ask(exchange.path, expert, body), only)

    async def _cascade(
        self, exchange: Exchange, ask: Ask, payload: Mapping[str, Any], decision: Decision
    ) -> None:
        """Each expert's answer is read whole; the first one that is sure enough, or the last, is the
        reply."""
        *cheaper, last = self._table.cascade(self._states())
        tried = []
        for expert in cheaper:
            kept = Kept()
            status = await self._pass_on(kept, asked_for_logprobs(ask, expert, payload), decision)
            sure = round(confidence(kept.logprobs), 4) if status == 200 else 0.0
            tried.append(f"{expert.name} is {sure:.2f} sure" if status == 200 else f"{expert.name} failed")
            if not escalates(sure, self._cascade_confidence):
                told = replace(decision, chosen=expert.name, reason="; ".join(tried), confidence=sure)
                await kept.send(exchange, self._headers(expert, told))
                return
        told = replace(decision, chosen=last.name, reason="; ".join([*tried, f"{last.name} is asked last"]))
        await self._pass_on(exchange, replace(ask, expert=last), told)

    async def _canary(self, exchange: Exchange, ask: Ask, trial: Expert, decision: Decision) -> None:
        """The expert on trial answers; one that fails before it begins leaves the request to the usual
        one."""
        told = replace(decision, chosen=trial.name, reason=f"{decision.reason}; canary of '{trial.version}'")
        tee = Tee(exchange)
        status = await self._pass_on(tee, replace(ask, expert=trial), told, keep_failure=True)
        self.trials.answered(trial, tee.answer(status))
        if not exchange.started:
            await self._pass_on(exchange, ask, decision)

    async def _beside_trial(self, exchange: Exchange, ask: Ask, trial: Expert, decision: Decision) -> None:
        """The usual expert answers; how it does is what the one on trial is compared with."""
        tee = Tee(exchange)
        usual = tee.answer(await self._pass_on(tee, ask, decision))
        if usual.status != 200:
            return
        if trial.state == "shadow":
            copy = replace(ask, expert=trial)
            self.trials.shadow(trial, usual, lambda: self._engines[trial.model_key].answer(copy))
        else:
            self.trials.baseline(trial, usual)

    def _decide(self, payload: Mapping[str, Any], request_id: str) -> tuple[Expert, Decision]:
        wanted, seen = str(payload["model"]), Observation(request_id, turns_of(payload))
        decision = self._table.decide(wanted, seen, self._states())
        expert = self._table.router.expert(decision.chosen) if decision else None
        if decision is None or expert is None:
            raise unknown_model(wanted, self._table.names)
        told = {"expert": expert.name, "policy": decision.policy}
        tracing.note(**told, artifact=expert.artifact, confidence=decision.confidence)
        logger.info(
            "routed to expert=%s policy=%s: %s", *told.values(), decision.reason, extra={"facts": told}
        )
        return expert, decision

    def _states(self) -> dict[str, ExpertState]:
        return {e.name: self._state(e) for e in (*self._table.router.live, *self._table.on_trial)}

    def _state(self, expert: Expert) -> ExpertState:
        engine, now = self._engines[expert.model_key], asyncio.get_running_loop().time()
        return ExpertState(engine.serves(expert) and self._breakers[expert.name].allows(now), engine.wait_s)

    def _ended(self, expert: Expert, status: int, began: float) -> None:
        """What became of a request; a queue that is full is no better for the next one than a failure."""
        now = asyncio.get_running_loop().time()
        self._open_requests[expert.name] -= 1
        self._meters.ended(expert.name, status, now - began)
        breaker = self._breakers.get(expert.name)
        if breaker is None:  # it was removed meanwhile
            return
        after = breaker.told(failed=status == 429 or status >= 500, now=now)
        self._breakers[expert.name] = after
        if after.open_s > breaker.open_s:
            logger.warning("expert %s gets no routed requests for %g s", expert.name, after.open_s)

    async def _pass_on(
        self, exchange: Outlet, ask: Ask, decision: Decision, *, keep_failure: bool = False
    ) -> int:
        """The expert's reply to the client; returns its status. One that breaks off ends with an error, not
        as if finished; ``keep_failure`` tells the client nothing of one that fails before it begins."""
        expert = ask.expert
        headers = self._headers(expert, decision)
        began = asyncio.get_running_loop().time()
        # It may have been removed since it was chosen, and then still answers.
        self._breakers[expert.name] = self._breakers.get(expert.name, Breaker()).asked(began)
        self._open_requests[expert.name] += 1
        status, error = 500, None
        try:
            async with (
                asyncio.timeout_at(began + self._limits.timeout_s),
                aclosing(self._engines[expert.model_key].answer(ask)) as parts,  # type: ignore[type-var]
            ):
                head = await anext(parts)
                assert isinstance(head, ReplyHead), "an engine sends a reply's head before its bytes"
                if not keep_failure or head.status < 500:
                    await self._copy(exchange, head, parts, headers, expert, began)
                status = head.status
        except TimeoutError:
            error = too_slow(self._limits.timeout_s)
        except ApiError as told:
            error = told
        except asyncio.CancelledError:
            status = CLIENT_LEFT
            raise
        finally:
            if error is not None:
                status = error.status
            self._ended(expert, status, began)
            tracing.note(status=status)
        if error is not None and (exchange.started or not keep_failure):
            await _fail(exchange, error, headers)
        return status

    def _headers(self, expert: Expert, decision: Decision) -> dict[str, str]:
        return {
            "x-largeforge-expert": expert.name,
            "x-largeforge-artifact": expert.artifact,
            "x-largeforge-decision": _header(decision),
        }

    async def _copy(
        self,
        exchange: Outlet,
        head: ReplyHead,
        parts: AsyncIterator[Any],
        headers: dict[str, str],
        expert: Expert,
        began: float,
    ) -> None:
        if head.retry_after_s is not None:
            headers["retry-after"] = str(head.retry_after_s)
        if not head.content_type.startswith("text/event-stream"):
            await exchange.reply(head.status, b"".join([p async for p in parts]), headers, head.content_type)
            return
        self._meters.began(expert.name, asyncio.get_running_loop().time() - began)
        await exchange.start(head.status, head.content_type, headers)
        async for part in parts:
            await exchange.part(part)
        await exchange.end()

    async def _models(self, exchange: Exchange, _: str) -> None:
        await exchange.json({"object": "list", "data": model_cards(self._table, self._created)})

    async def _experts(self, exchange: Exchange, _: str) -> None:
        await exchange.json({"data": expert_cards(self._table, self._engines, self._reasons)})

    async def _file(self, exchange: Exchange, _: str) -> None:
        file = self._page[exchange.path]
        status, body = file.reply(exchange.header("if-none-match"))
        await exchange.reply(status, body, file.headers, file.content_type)

    async def _health(self, exchange: Exchange, _: str) -> None:
        """As long as any expert answers; one that is down stops no other."""
        experts = standing(self._table, self._engines)
        if "up" not in experts.values():
            raise expert_unavailable(next(iter(experts)))
        status = "degraded" if "down" in experts.values() else "ok"
        await exchange.json({"status": status, "experts": experts})

    async def _ready(self, exchange: Exchange, _: str) -> None:
        """Once every expert answers."""
        experts = standing(self._table, self._engines)
        down = [name for name, state in experts.items() if state == "down"]
        if down:
            raise expert_unavailable(down[0])
        await exchange.json({"status": "ok", "experts": experts})


async def _fail(exchange: Outlet, error: ApiError, headers: Mapping[str, str]) -> None:
    if not exchange.started:
        await exchange.reply(error.status, error.body(), {**headers, **error.headers}, "application/json")
        return
    await exchange.part(error.event())
    await exchange.end()


def _header(decision: Decision) -> str:
    """ASCII JSON on one line; the request's id has a header of its own."""
    facts = asdict(decision)
    del facts["request_id"]
    return json.dumps(facts, separators=(",", ":"))
