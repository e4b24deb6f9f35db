"""What a replica counts, in Ray's Prometheus exporter under ``ray_largeforge_...``."""

from __future__ import annotations

from collections.abc import Mapping

from largeforge_ray.models.speculation import SpeculationNumbers
from largeforge_ray.routing.experts import ModelGroup, Price
from serve_apps.metered import Usage

TOKEN_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0]
"""Upper ends of the histogram's buckets."""


class ReplicaMeters:
    """Counts with Ray; create it in a Ray process."""

    def __init__(self, group: ModelGroup) -> None:
        from ray.util.metrics import Counter, Histogram

        self._model = group.model_key[:8]
        # Requests to the model itself carry no adapter's name.
        self._base = next((e.name for e in group.experts if not e.adapter_key), self._model)
        self._drafted = Counter(
            "largeforge_drafted_tokens",
            description="Tokens drafted for the model to verify",
            tag_keys=("model",),
        )
        self._accepted = Counter(
            "largeforge_accepted_tokens",
            description="Drafted tokens that the model would have said",
            tag_keys=("model",),
        )
        self._tokens = Counter(
            "largeforge_tokens",
            description="Tokens by expert and kind: prompt, those of it that were cached, completion",
            tag_keys=("expert", "kind"),
        )
        self._cost = Counter(
            "largeforge_cost", description="What an expert's answers cost by its price", tag_keys=("expert",)
        )
        self._pace = Histogram(
            "largeforge_output_token_seconds",
            description="Mean time of a token after the first (TPOT)",
            boundaries=TOKEN_SECONDS,
            tag_keys=("expert",),
        )

    def ended(self, usage: Usage, prices: Mapping[str, Price]) -> None:
        """``prices`` are those of experts, by name."""
        expert = (usage.name or self._base).partition("@")[0]
        for kind, tokens in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
        ):
            if tokens:
                self._tokens.inc(tokens, tags={"expert": expert, "kind": kind})
        if cost := prices.get(expert, Price()).of(usage.prompt_tokens, usage.completion_tokens):
            self._cost.inc(cost, tags={"expert": expert})
        if usage.speculation is not None:
            numbers = SpeculationNumbers().after(usage.speculation)
            for counter, tokens in ((self._drafted, numbers.drafted), (self._accepted, numbers.accepted)):
                if tokens:
                    counter.inc(tokens, tags={"model": self._model})
        if usage.token_s is not None:
            self._pace.observe(usage.token_s, tags={"expert": expert})
