"""Experts as frozen values, and the router artifact's ``router.json`` they are read from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from largeforge_ray.config.speculation import parse_speculation
from largeforge_ray.errors import ConfigError

State = Literal["proposed", "loading", "shadow", "canary", "live", "draining", "failed"]
Backend = Literal["vllm", "transformers"]
AUTO = "auto"
"""The model name that asks the policy to choose; no expert may have it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[0-9a-f]{16,64}")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """``max_model_len`` is in tokens. ``max_lora_rank`` None serves no adapters.

    ``transformers`` is the ``backend`` for models that vLLM does not know. ``speculation`` has the fields of
    ``config.speculation``, None is without.
    """

    max_model_len: int
    max_lora_rank: int | None = None
    backend: Backend = "vllm"
    speculation: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """Per thousand tokens, in whatever unit the manifest counts cost."""

    per_1k_prompt: float = 0.0
    per_1k_completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.per_1k_prompt + completion_tokens * self.per_1k_completion) / 1000

    @property
    def per_1k_tokens(self) -> float:
        """Of a thousand tokens of either kind, by which experts are compared."""
        return self.per_1k_prompt + self.per_1k_completion


@dataclass(frozen=True, slots=True)
class Territory:
    """What an expert was made for: some training prompts, and keywords with weights in 0..1."""

    prompts: tuple[str, ...] = ()
    keywords: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Expert:
    """Something a request can go to: a model, perhaps with an adapter on it.

    One that ``embeds`` turns texts into vectors. It has an endpoint of its own, and no policy chooses it.
    """

    name: str
    state: State
    model_key: str
    engine: EngineOptions
    adapter_key: str | None = None
    price: Price = field(default_factory=Price)
    territory: Territory = field(default_factory=Territory)
    embeds: bool = False

    @property
    def version(self) -> str:
        """The name that tells it from other adapters under the same name, such as ``orders@1f2e3d4c``."""
        return f"{self.name}@{self.artifact[:8]}"

    @property
    def artifact(self) -> str:
        """The 16 hex digits that lead from an answer to what made it: the adapter's, else the model's."""
        return (self.adapter_key or self.model_key)[:16]


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """``threshold`` is the score, 0..1, below which a request goes to the ``fallback`` expert.

    ``cost_weight`` is the quality that a thousand tokens for one unit of price are worth, ``wait_weight``
    that of a second's wait; ``sticky`` conversations stay with their expert.
    """

    kind: str
    fallback: str
    threshold: float = 0.5
    cost_weight: float = 0.0
    wait_weight: float = 0.0
    sticky: bool = True


@dataclass(frozen=True, slots=True)
class Router:
    """A policy and the experts it chooses from, and one that embeds. Only live experts are ever chosen."""

    policy: PolicyConfig
    experts: tuple[Expert, ...]

    @property
    def served(self) -> tuple[Expert, ...]:
        """All that are live, in the order of the table."""
        return tuple(expert for expert in self.experts if expert.state == "live")

    @property
    def live(self) -> tuple[Expert, ...]:
        """Those that a policy chooses from."""
        return tuple(expert for expert in self.served if not expert.embeds)

    @property
    def embedder(self) -> Expert | None:
        """The one that embeds. Vectors of two models do not compare, so there is one at most."""
        return next((expert for expert in self.served if expert.embeds), None)

    def expert(self, name: str) -> Expert | None:
        """The live expert of this name."""
        return next((expert for expert in self.live if expert.name == name), None)


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """The live experts that share one base model, and so one engine that fits them all."""

    model_key: str
    experts: tuple[Expert, ...]

    @property
    def max_model_len(self) -> int:
        return max(expert.engine.max_model_len for expert in self.experts)

    @property
    def max_lora_rank(self) -> int | None:
        """Room for the adapters there are, and for those that come while it serves."""
        ranks = [expert.engine.max_lora_rank for expert in self.experts]
        return max((rank for rank in ranks if rank), default=None)

    @property
    def backend(self) -> Backend:
        return self.experts[0].engine.backend

    @property
    def speculation(self) -> dict[str, Any] | None:
        """That of the first expert that has one: an engine drafts for all it serves, or for none."""
        return next((e.engine.speculation for e in self.experts if e.engine.speculation), None)

    @property
    def embeds(self) -> bool:
        return self.experts[0].embeds


def model_groups(router: Router) -> tuple[ModelGroup, ...]:
    """Live experts by base model, in the order the router lists them."""
    groups: dict[str, list[Expert]] = {}
    for expert in router.served:
        groups.setdefault(expert.model_key, []).append(expert)
    return tuple(ModelGroup(key, tuple(experts)) for key, experts in groups.items())


def parse_router(data: bytes | str | Mapping[str, Any], where: str = "router.json") -> Router:
    """Read and check a router; ``where`` names it in errors.

    Unknown fields are passed over, because a newer version may have written the artifact.

    Raises:
        ConfigError: a field is missing or wrong, two experts share a name, or the fallback is not live.
    """
    adapter = TypeAdapter(Router)
    try:
        if isinstance(data, Mapping):
            router = adapter.validate_python(dict(data))
        else:
            router = adapter.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ConfigError(f"{where}: {place}: {first['msg']}; promote again to write a new router") from None
    _check(router, where)
    return router


def _check(router: Router, where: str) -> None:
    policy, names = router.policy, [expert.name for expert in router.experts]
    if not 0.0 <= policy.threshold <= 1.0:
        raise ConfigError(f"{where}: policy.threshold {policy.threshold} is outside 0..1; use 0.5")
    for expert in router.experts:
        _check_expert(expert, where)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: two experts are named '{name}'; names are unique, rename one")
    if router.expert(policy.fallback) is None:
        live = ", ".join(expert.name for expert in router.live) or "none"
        raise ConfigError(
            f"{where}: policy.fallback '{policy.fallback}' is no live expert; choose one of: {live}"
        )
    if len([expert for expert in router.served if expert.embeds]) > 1:
        raise ConfigError(f"{where}: two experts embed, and vectors of two models do not compare; keep one")
    for group in model_groups(router):
        if len({expert.embeds for expert in group.experts}) > 1:
            raise ConfigError(f"{where}: one engine would both embed and write; give the embedder a model")
        if len({expert.engine.backend for expert in group.experts}) > 1:
            sharing = ", ".join(f"{expert.name} ({expert.engine.backend})" for expert in group.experts)
            raise ConfigError(f"{where}: one engine serves {sharing}, which share a model; name one backend")


def _check_expert(expert: Expert, where: str) -> None:
    at = f"{where}: expert '{expert.name}'"
    if not _NAME.fullmatch(expert.name) or expert.name == AUTO:
        raise ConfigError(
            f"{at}: a name is 1 to 64 of A-Z a-z 0-9 . _ - and not '{AUTO}'; rename the stage it came from"
        )
    if expert.embeds and (expert.adapter_key or expert.engine != EngineOptions(expert.engine.max_model_len)):
        raise ConfigError(f"{at}: embeds, which vLLM does without adapters and drafts; remove them")
    for label, key in (("model_key", expert.model_key), ("adapter_key", expert.adapter_key)):
        if key is not None and not _KEY.fullmatch(key):
            raise ConfigError(f"{at}: {label} '{key}' is not 16 to 64 hex digits; take it from the artifact")
    if expert.engine.max_model_len < 1:
        raise ConfigError(f"{at}: engine.max_model_len {expert.engine.max_model_len} is below 1 token")
    if expert.engine.speculation is not None:
        _check_speculation(expert.engine, at)
    if expert.adapter_key and not expert.engine.max_lora_rank:
        raise ConfigError(f"{at}: has an adapter but no engine.max_lora_rank; set it to the adapter's rank")
    for word, weight in expert.territory.keywords.items():
        if not 0.0 <= weight <= 1.0:
            raise ConfigError(f"{at}: weight {weight} of keyword '{word}' is outside 0..1; scale it")


def _check_speculation(engine: EngineOptions, at: str) -> None:
    if engine.backend != "vllm":
        raise ConfigError(f"{at}: backend {engine.backend} does not speculate; leave engine.speculation out")
    try:
        parse_speculation(engine.speculation)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in ("engine.speculation", *first["loc"]))
        raise ConfigError(f"{at}: {place}: {first['msg']}") from None
