"""The policies a router artifact can serve: files are read once, a policy is built for every new table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from largeforge_ray.config.routing import THRESHOLDS
from largeforge_ray.errors import ConfigError
from largeforge_ray.routing.experts import Expert, Router
from largeforge_ray.routing.hybrid import HybridScorer
from largeforge_ray.routing.keyword import KeywordScorer
from largeforge_ray.routing.policy import Policy, Scorer

if TYPE_CHECKING:
    from largeforge_ray.routing.encoder import Floats
    from largeforge_ray.routing.learned import Learned
    from largeforge_ray.routing.neural import Background, Embed, NeuralScorer

ENCODER = "encoder"
"""The folder of a router artifact that holds the encoder, if it is asked at every request."""
BACKGROUND = "background.safetensors"


class Policies:
    """Policies by kind. ``folder`` is the router artifact's; without one there are keywords alone.

    ``kinds`` are those there are files for. Raises ``OSError`` or ``ValueError`` for a file that is damaged.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._embed: _Remembering | None = None
        self._learned: Learned | None = None
        self.kinds: tuple[str, ...] = ("keyword",)
        if folder is not None and (folder / BACKGROUND).is_file():
            self._embed, self._background = _Remembering(load_embed(folder)), load_background(folder)
            self.kinds += ("neural", "hybrid")
        if folder is not None and self._embed is not None:
            from largeforge_ray.routing.learned import FILE, load_learned

            if (folder / FILE).is_file():
                self._learned = load_learned(folder)
                self.kinds += ("learned",)

    def build(self, router: Router, kind: str | None = None) -> Policy:
        """A policy of ``kind``, None is the router's own, over the live experts.

        It takes milliseconds, as only prompts that no table had before are embedded.

        A kind other than the router's has that kind's threshold. Raises ``ConfigError`` for a kind that
        there are no files for.
        """
        config = router.policy
        if kind is not None and kind != config.kind:
            config = replace(config, kind=kind, threshold=THRESHOLDS.get(kind, config.threshold))
        return Policy(config, router.live, self._scorer(config.kind, router.live))

    def _scorer(self, kind: str, experts: Sequence[Expert]) -> Scorer:
        if kind not in self.kinds:
            fault = "is unknown"
            if kind in THRESHOLDS:
                fault = "needs what a router stage learns; promote with policy.router naming one"
            raise ConfigError(f"policy kind '{kind}' {fault}. Supported: {list(self.kinds)}")
        if kind == "keyword":
            return KeywordScorer(experts)
        if kind == "hybrid":
            return HybridScorer(KeywordScorer(experts), self._neural(experts))
        if kind == "neural":
            return self._neural(experts)
        from largeforge_ray.routing.learned import LearnedScorer

        assert self._learned is not None
        assert self._embed is not None
        return LearnedScorer(experts, self._learned, self._embed, self._neural(experts))

    def _neural(self, experts: Sequence[Expert]) -> NeuralScorer:
        from largeforge_ray.routing.neural import NeuralScorer

        assert self._embed is not None
        return NeuralScorer(experts, self._embed, self._background)


def build_policy(router: Router) -> Policy:
    """The policy of a router without an artifact. Raises ``ConfigError`` as ``Policies.build``."""
    return Policies().build(router)


def load_embed(folder: Path) -> Embed:
    """The encoder or the static embedding in a router artifact."""
    from largeforge_ray.routing.embedding import Embedding
    from largeforge_ray.routing.encoder import Encoder

    return Encoder(folder / ENCODER) if (folder / ENCODER).is_dir() else Embedding(folder)


def save_background(background: Background, folder: Path) -> None:
    """Write ``BACKGROUND``: the vectors in half precision, the labels as its metadata."""
    from safetensors.numpy import save_file

    halves = background.vectors_ND.astype("float16")
    save_file({"vectors": halves}, folder / BACKGROUND, metadata={"labels": json.dumps(background.labels)})


def load_background(folder: Path) -> Background:
    """Read what ``save_background`` wrote."""
    from safetensors import safe_open

    from largeforge_ray.routing.neural import Background

    with safe_open(folder / BACKGROUND, "numpy") as file:
        vectors = file.get_tensor("vectors").astype("float32")
        return Background(tuple(json.loads(file.metadata()["labels"])), vectors)


class _Remembering:
    """An embedding that keeps the vectors of the territories it has seen."""

    def __init__(self, embed: Embed) -> None:
        self.embed = embed.embed
        self._embed_all = embed.embed_all
        self._seen: dict[tuple[str, ...], Floats] = {}

    def embed_all(self, texts: Sequence[str]) -> Floats:
        key = tuple(texts)
        if key not in self._seen:
            self._seen[key] = self._embed_all(texts)
        return self._seen[key]
