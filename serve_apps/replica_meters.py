"""What a replica counts, in Ray's Prometheus exporter under ``ray_largeforge_...``."""

from __future__ import annotations

from serve_apps.metered import Usage

TOKEN_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0]
"""Upper ends of the histogram's buckets."""


class ReplicaMeters:
    """Counts with Ray; create it in a Ray process. ``model`` stands for requests to the model itself."""

    def __init__(self, model: str) -> None:
        from ray.util.metrics import Counter, Histogram

        self._model = model
        self._tokens = Counter(
            "largeforge_tokens",
            description="Tokens by expert and kind: prompt, those of it that were cached, completion",
            tag_keys=("expert", "kind"),
        )
        self._pace = Histogram(
            "largeforge_output_token_seconds",
            description="Mean time of a token after the first (TPOT)",
            boundaries=TOKEN_SECONDS,
            tag_keys=("expert",),
        )

    def ended(self, usage: Usage) -> None:
        expert = (usage.name or self._model).partition("@")[0]
        for kind, tokens in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
        ):
            if tokens:
                self._tokens.inc(tokens, tags={"expert": expert, "kind": kind})
        if usage.token_s is not None:
            self._pace.observe(usage.token_s, tags={"expert": expert})
