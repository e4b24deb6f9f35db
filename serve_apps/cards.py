"""What the router tells of its models and experts, and of whether they answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from largeforge_ray.routing import Expert
from serve_apps.ports import Engine
from serve_apps.table import Table

Engines = Mapping[str, Engine]


def model_cards(table: Table, created: int) -> list[dict[str, Any]]:
    """Whatever a request may name, in OpenAI's shape; ``created`` is in seconds since the epoch."""
    experts = {expert.name: expert for expert in table.router.served}

    def card(name: str) -> dict[str, Any]:
        facts = {"id": name, "object": "model", "created": created, "owned_by": "largeforge"}
        expert = experts.get(name)
        return facts | ({"artifact": expert.artifact, "embeds": expert.embeds} if expert else {})

    return [card(name) for name in dict.fromkeys((*table.names, *experts))]


def expert_cards(table: Table, engines: Engines, reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """All experts and how they do; ``reasons`` say by version why an expert is in its state."""

    def card(expert: Expert) -> dict[str, Any]:
        engine = engines[expert.model_key]
        return {
            "name": expert.name,
            "state": expert.state,
            "artifact": expert.artifact,
            "embeds": expert.embeds,
            "reason": reasons.get(expert.version, ""),
            "replicas": engine.replicas,
            "up": engine.serves(expert),
            "running": engine.running,
            "waiting_s": round(engine.wait_s, 3),
            "speculation": engine.speculation,
        }

    return [card(expert) for expert in table.router.experts]


def standing(table: Table, engines: Engines) -> dict[str, str]:
    """By live expert, whether it is ``up`` or ``down``."""
    return {e.name: "up" if engines[e.model_key].serves(e) else "down" for e in table.router.served}
