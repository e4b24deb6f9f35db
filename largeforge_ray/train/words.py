"""What a run is about to do, in words and numbers, before its first step."""

from __future__ import annotations

import math
from typing import Any

from largeforge_ray.config.algorithms import Features, Grpo, OnPolicy
from largeforge_ray.config.training import DIVIDES_WEIGHTS, TrainStage
from largeforge_ray.errors import ConfigError, DataError

GIB = 1024**3
NEEDS = {
    "prompt": "prompts (a question with its answer and check)",
    "chat": "whole chats (messages with an assistant turn, Alpaca or ShareGPT rows)",
    "preference": "pairs (a prompt with chosen and rejected)",
    "rationale": "chats with their reasoning (a teach stage with make: rationales, or rows with rationale)",
    "unpaired": "judged chats (a chat with label: true or false)",
}


def check_form(algorithm: Any, form: str | None, dataset: str) -> None:
    """Refuse rows the algorithm does not learn from. Raises ``DataError``."""
    if form is not None and form != algorithm.form:
        raise DataError(
            f"algorithm '{algorithm.name}' learns from {NEEDS[algorithm.form]}, "
            f"but dataset '{dataset}' holds rows of form '{form}'; use other data or another algorithm"
        )


KEPT = {"topk": ("probabilities", "topk: 32"), "hidden": ("hidden states", "hidden: [9, 19]")}
"""What an option of a teach stage keeps at every token, and an example of it."""


def check_taught(algorithm: Any, source: Any, dataset: str) -> None:
    """Refuse rows without what is to be learned of a teacher beside its answers. Raises ``DataError``,
    and ``ConfigError`` for layers of the student that do not go with the teacher's.

    ``source`` is the teach stage, None of other data.
    """
    if algorithm.taught and getattr(source, algorithm.taught, None) is None:
        what, example = KEPT[algorithm.taught]
        raise DataError(
            f"algorithm '{algorithm.name}' learns from a teacher's {what} at every token, and "
            f"dataset '{dataset}' holds none; name a teach stage with {algorithm.taught} "
            f"(such as {example}), or use algorithm: sft"
        )
    if isinstance(algorithm, Features) and algorithm.layers is not None:
        _check_pairs(algorithm.layers, source.hidden)


def _check_pairs(layers: list[int], hidden: list[int]) -> None:
    if len(layers) != len(hidden):
        raise ConfigError(
            f"algorithm.layers names {len(layers)} layers of the student and the teacher's states are of "
            f"{len(hidden)} ({', '.join(map(str, hidden))}); name one for each"
        )


def match_layers(algorithm: Any, hidden: dict[str, Any], student_layers: int) -> Any:
    """The algorithm ``features`` with a layer of the student for each of the teacher's, and their width.

    ``hidden`` is the dataset's own record: the teacher's ``layers`` of how many (``of``), and ``width``.
    Raises ``ConfigError`` for layers that are not there.
    """
    layers = algorithm.layers
    if layers is None:
        # A layer's share of the way through the model: the last one's is the last.
        shares = [(layer + 1) / hidden["of"] for layer in hidden["layers"]]
        layers = [max(0, round(share * student_layers) - 1) for share in shares]
    _check_pairs(layers, hidden["layers"])
    if not all(0 <= layer < student_layers for layer in layers):
        raise ConfigError(
            f"algorithm.layers {layers} goes beyond the student's layers 0 to {student_layers - 1}; "
            "name others"
        )
    return algorithm.model_copy(update={"layers": layers, "width": hidden["width"]})


def check_vocabulary(teacher: str | None, student: str, dataset: str) -> None:
    """Refuse token ids that another tokenizer made; both are ``tokenizer_hash``es. Raises ``DataError``."""
    if teacher != student:
        raise DataError(
            f"dataset '{dataset}' was taught with tokenizer {(teacher or 'unknown')[:12]} and the model has "
            f"{student[:12]}: a token id would mean another text to it; use a teacher and a model of one "
            "vocabulary, or algorithm: sft, which learns from the text"
        )


def describe(stage: TrainStage, counts: dict[str, Any], start: dict[str, Any]) -> list[str]:
    """The arithmetic of the batches, the memory of a worker, and what was left out.

    ``counts`` come from the tokens, ``start`` from the first worker's note: steps, workers and parameters.
    """
    per_epoch = math.ceil(counts["rows"] / stage.batch_size)
    each = f"{counts['learned']} of them learned; {stage.batch_size} rows a step"
    if isinstance(stage.algorithm, Grpo | OnPolicy):
        o = stage.algorithm
        each = f"{stage.batch_size} rows a step, {o.group} answers each of {o.max_new_tokens} tokens or less"
    lines = [
        f"{counts['rows']} rows, {counts['tokens']} tokens; {each}: "
        f"{per_epoch} steps an epoch x {stage.epochs:g} = {start['steps']} steps",
        f"{start['workers']} worker(s), {stage.strategy}, {stage.batching}, "
        f"at most {stage.tokens_per_pass} tokens a pass; "
        f"{start['trainable_parameters']:,} of {start['parameters']:,} parameters trained; "
        f"about {worker_gib(stage, start):.1f} GiB a worker",
    ]
    if counts["left_out"]:
        rows = ", ".join(map(str, counts["first"]))
        lines.append(
            f"{counts['left_out']} rows are longer than max_tokens {stage.max_tokens} and left out: "
            f"rows {rows}{', ...' if counts['left_out'] > len(counts['first']) else ''}"
        )
    return lines


def worker_gib(stage: TrainStage, start: dict[str, Any]) -> float:
    """Weights in bfloat16 or NF4; of trained ones also a float32 copy, a gradient and two moments; logits."""
    quantized = stage.lora is not None and stage.lora.quantize
    frozen = (0.52 if quantized else 2) * (start["parameters"] if stage.lora else 0)
    trained = start["trainable_parameters"] * (2 + 2 + 4 * 4)
    if stage.strategy in DIVIDES_WEIGHTS:
        frozen, trained = frozen / start["workers"], trained / start["workers"]
    logits = stage.tokens_per_pass * start.get("vocabulary", 50_000) * (2 + 4 + 4)
    return float((frozen + trained + logits) / GIB) + 1.5
