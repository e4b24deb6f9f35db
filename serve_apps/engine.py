"""What a replica asks of an engine, and the choice of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from largeforge_ray.config.speculation import Speculation
from largeforge_ray.routing.experts import Backend
from serve_apps.metered import Usage
from serve_apps.openai_errors import ReplyHead
from serve_apps.placing import Placing
from serve_apps.probing import Scores


class Engine(Scores, Protocol):
    """One loaded model and the adapters on it. Create and use it inside one event loop."""

    @property
    def served(self) -> tuple[str, ...]:
        """The names requests may give as their model."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""

    @property
    def healthy(self) -> bool:
        """Whether it can answer."""

    @property
    def running(self) -> int:
        """Requests it is answering or has queued."""

    def answer(
        self, path: str, payload: Mapping[str, Any], said: str = ""
    ) -> AsyncIterator[ReplyHead | bytes]:
        """A head, then the bytes of the reply; closing the iterator ends the work on it.

        The answer begins with what was ``said`` by another engine, which is told again first; that of
        transformers goes on with nothing.
        """

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a PEFT folder under a name. Raises ``ModelError`` if the engine refuses it."""

    async def unload_adapter(self, name: str) -> None:
        """No longer serve what is under the name; requests under way end."""

    async def check_health(self) -> None:
        """Raise when it has to be replaced, and never come back while it is stuck."""

    def shutdown(self) -> None:
        """Stop it and what is under way."""


def start_engine(
    backend: Backend,
    model_dir: Path,
    names: Sequence[str],
    *,
    max_model_len: int,
    max_lora_rank: int | None,
    placing: Placing,
    max_tokens: int,
    ended: Callable[[Usage], None],
    speculation: Speculation | None = None,
    draft_dir: Path | None = None,
    embeds: bool = False,
) -> Engine:
    """Start the engine of the model in ``model_dir``, whose own names are ``names``; this blocks.

    Only vLLM sets room aside for adapters up to a rank and for so many sequences at once, and divides a model
    among workers: transformers takes any rank, and one request after the other.
    """
    if backend == "transformers":
        from serve_apps.transformers_engine import TransformersEngine

        return TransformersEngine(
            model_dir, names, max_model_len=max_model_len, max_tokens=max_tokens, ended=ended
        )
    from serve_apps.vllm_engine import VllmEngine

    return VllmEngine(
        model_dir,
        names,
        max_model_len=max_model_len,
        max_lora_rank=max_lora_rank,
        placing=placing,
        max_tokens=max_tokens,
        ended=ended,
        speculation=speculation,
        draft_dir=draft_dir,
        embeds=embeds,
    )
