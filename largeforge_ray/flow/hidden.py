"""A teacher's hidden states beside the answers that a teach stage keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from largeforge_ray.config.teaching import Teacher, TeachStage
from largeforge_ray.data.rows import HIDDEN
from largeforge_ray.flow.context import RunContext
from largeforge_ray.models.hardware import gpus_each
from largeforge_ray.teach.prompts import show_teacher

READ_AT_ONCE = 16
NUMBER_BYTES = 2
"""Of float16."""


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Which states are kept: of ``layers`` out of ``of``, each ``width`` wide. ``model`` is an address, as is
    ``adapter`` if the teacher is one."""

    model: str
    adapter: str | None
    layers: list[int]
    of: int
    width: int
    teacher: Teacher

    def facts(self) -> dict[str, Any]:
        return {"layers": self.layers, "of": self.of, "width": self.width}

    def words(self, answers: int) -> str:
        """The room they take before compression."""
        each = NUMBER_BYTES * len(self.layers) * self.width
        most = each * answers * self.teacher.max_tokens / 1024**3
        return (
            f"hidden states of {len(self.layers)} layers x {self.width} x {NUMBER_BYTES} bytes: {each} bytes "
            f"a token, {most:.2f} GiB at most for {answers} answers of {self.teacher.max_tokens} tokens"
        )

    def beside(self, context: RunContext, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows with the states of their answers' tokens, as the teacher was asked."""
        import ray

        from largeforge_ray.models.states import StateReader

        # It takes an engine's place, and no row is asked for any more.
        context.close_engines()
        actor: Any = ray.remote(StateReader).options(
            **context.place.options(),
            num_cpus=1,
            num_gpus=gpus_each(),
            max_restarts=3,
            max_task_retries=3,
        )
        reader = actor.remote(self.model, self.adapter, self.layers, "cuda" if gpus_each() else "cpu")
        with context.phase("hidden states"), context.ledger.holding(1):
            every = iter(rows)
            while block := list(islice(every, READ_AT_ONCE)):
                asked = [
                    (show_teacher(row["messages"][:-1], self.teacher), row["token_ids"]) for row in block
                ]
                for row, states in zip(block, ray.get(reader.states.remote(asked)), strict=True):
                    yield row | {HIDDEN: states.reshape(-1)}
        ray.kill(reader)


def hidden_states(declared: TeachStage, context: RunContext, model: str, adapter: str | None) -> HiddenStates:
    """What ``declared`` wants of the teacher, whose ``model`` is that of a stage. Raises ``ConfigError`` for
    layers it lacks."""
    import transformers

    assert declared.hidden is not None
    config: Any = transformers.AutoConfig.from_pretrained(context.folder(model))
    declared.check_layers(config.num_hidden_layers)
    return HiddenStates(
        context.address(model),
        adapter,
        declared.hidden,
        config.num_hidden_layers,
        config.hidden_size,
        declared.teacher,
    )
