"""The names of the numbers that events and artifacts carry, each with its unit.

A name that is not listed still gets a unit from its ending (``_s``, ``_bytes``, ``_tokens``), so a
new cost shows up in the report with its unit before anyone edits this file.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One number's name, its unit (empty for a bare count) and what it counts."""

    name: str
    unit: str
    meaning: str


_LISTED = (
    Metric("done", "", "rows or answers finished so far"),
    Metric("total", "", "rows or answers there are"),
    Metric("kept", "rows", "teacher rows that passed every check"),
    Metric("dropped", "rows", "teacher rows that a check refused"),
    Metric("failed", "rows", "teacher rows that ended in an error"),
    Metric("step", "", "optimiser steps taken"),
    Metric("steps", "", "optimiser steps planned"),
    Metric("loss", "nats per token", "mean training loss of a step"),
    Metric("final_loss", "nats per token", "mean training loss of the last step"),
    Metric("held_out", "nats per token", "mean loss on held-out rows"),
    Metric("learning_rate", "", "learning rate of a step"),
    Metric("grad_norm", "", "length of a step's gradient before it is clipped"),
    Metric("margin", "", "mean difference between the rewards of the better and the worse answer"),
    Metric("reward", "", "mean reward of a step's answers"),
    Metric("reward_std", "", "mean spread of the rewards within a group"),
    Metric("no_signal", "of 1", "share of groups whose rewards are all equal"),
    Metric("clipped", "of 1", "share of tokens whose ratio to the drawing model is beyond the clip"),
    Metric("kl", "nats per token", "divergence from the base"),
    Metric("hard", "nats per token", "cross-entropy with the teacher's own tokens"),
    Metric("soft", "nats per token", "divergence of the student from the teacher's probabilities"),
    Metric("features", "", "mean squared distance of the student's projected states from the teacher's"),
    Metric("engine_gap", "nats per token", "difference of engine and trainer about a drawn token"),
    Metric("epoch", "", "passes over the data"),
    Metric("tokens_per_s", "tokens/s", "tokens processed per second"),
    Metric("tokens", "tokens", "tokens processed"),
    Metric("prompt_tokens", "tokens", "tokens read"),
    Metric("cached_tokens", "tokens", "tokens read that had been computed for another prompt"),
    Metric("prefix_hits", "of 1", "share of the tokens read that had been computed for another prompt"),
    Metric("completion_tokens", "tokens", "tokens generated"),
    Metric("trainable_parameters", "", "parameters the optimiser changes"),
    Metric("seconds", "s", "wall-clock time"),
    Metric(
        "accuracy",
        "of 1",
        "share of what is judged that is right: answers of an evaluation, pairs of a training",
    ),
    Metric("gain", "of 1", "mean paired difference in quality"),
    Metric("cpu_s", "s", "time that the stage's processes held a CPU each"),
    Metric("gpu_s", "s", "time that they held a GPU each"),
    Metric("usd", "USD", "price paid"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _LISTED}

_UNIT_BY_ENDING = (
    ("_tokens_per_s", "tokens/s"),
    ("_seconds", "s"),
    ("_s", "s"),
    ("_tokens", "tokens"),
    ("_bytes", "bytes"),
    ("_gib", "GiB"),
    ("_hours", "h"),
    ("_usd", "USD"),
)


def unit_of(name: str) -> str:
    """The unit of a number by its name; empty when it is a bare count or unknown."""
    listed = METRICS.get(name)
    if listed is not None:
        return listed.unit
    return next((unit for ending, unit in _UNIT_BY_ENDING if name.endswith(ending)), "")
