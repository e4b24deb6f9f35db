"""What a ``sweep`` stage may say: a training, the space to search in, and how."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from largeforge_ray.config.base import Strict
from largeforge_ray.config.training import Lora, Training, TrainStage

SHORT = {"rank": "lora.rank", "alpha": "lora.alpha", "targets": "lora.targets"}
SHARED = (
    "model",
    "data",
    "max_tokens",
    "precision",
    "batching",
    "tokens_per_pass",
    "workers",
    "held_out_rows",
    "kind",
    "resources",
    "priority",
)
"""Trials of a sweep have these in common: they read the same tokens and are measured on the same rows."""
MUTABLE = ("learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm", "lora.dropout")
"""What may change in the middle of a training: neither the weights' shape nor what they mean hangs on it."""


class Range(Strict):
    """Numbers between two ends; ``log`` draws their logarithm evenly."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            rule = "0 < low < high" if self.log else "low < high"
            raise ValueError(f"low {self.low:g} and high {self.high:g} break the rule {rule}")
        return self


class Grid(Strict):
    """Every combination of the lists."""

    name: Literal["grid"] = "grid"


class Random(Strict):
    """``trials`` draws, Bergstra and Bengio 2012."""

    name: Literal["random"] = "random"
    trials: int = Field(ge=1)


class Optuna(Strict):
    """``trials`` proposals of a tree-structured Parzen estimator, Akiba et al. 2019 (arXiv:1907.10902)."""

    name: Literal["optuna"] = "optuna"
    trials: int = Field(ge=1)


class Asha(Strict):
    """Asynchronous successive halving, Li et al. 2018 (arXiv:1810.05934)."""

    name: Literal["asha"] = "asha"
    grace: int = Field(1, ge=1, description="Measurements before a trial may be stopped.")
    reduction: float = Field(3, gt=1, description="Of this many trials one goes on.")


class Median(Strict):
    """Stop what is worse than the median of the others, Golovin et al. 2017."""

    name: Literal["median"] = "median"
    grace: int = Field(1, ge=1)


class Pbt(Strict):
    """Population based training, Jaderberg et al. 2017 (arXiv:1711.09846).

    Nothing is stopped: a trial among the worst goes on from the weights, moments and step of one among the
    best, with that one's settings and those in ``mutate`` changed.
    """

    name: Literal["pbt"] = "pbt"
    every: int = Field(1, ge=1, description="Measurements between two decisions about a trial.")
    quantile: float = Field(0.25, gt=0.0, le=0.5, description="Share that copies, and share that is copied.")
    mutate: list[str] = Field(["learning_rate"], min_length=1, description="Paths of the space.")

    @model_validator(mode="after")
    def _weights_keep_their_meaning(self) -> Pbt:
        for path in self.mutate:
            if path not in MUTABLE:
                raise ValueError(
                    f"mutate names {path}, which cannot change in the middle of a training; "
                    f"choose from {', '.join(MUTABLE)}"
                )
        return self


SEARCHES: dict[str, type[Strict]] = {"grid": Grid, "random": Random, "optuna": Optuna}
STOPPERS: dict[str, type[Strict]] = {"asha": Asha, "median": Median, "pbt": Pbt}


class SweepStage(Training):
    """Many trainings on one frozen base with Ray Tune; the stage keeps the best."""

    kind: Literal["sweep"]
    space: dict[str, list[Any] | Range] = Field(
        min_length=1,
        description="Fields of a training by path; rank, alpha, targets and alpha_ratio for short.",
    )
    search: Annotated[Grid | Random | Optuna, Field(discriminator="name")] = Grid()
    stopping: Annotated[Asha | Median | Pbt, Field(discriminator="name")] | None = None
    measures: int = Field(4, ge=1, description="Held-out measurements over a trial, evenly spread.")
    parallel: int = Field(4, ge=1, description="Trials under way at once.")
    per_process: int = Field(4, ge=1, description="Trials that share a process and its one copy of the base.")

    OWN: ClassVar[frozenset[str]] = frozenset(
        {"space", "search", "stopping", "measures", "parallel", "per_process"}
    )

    @model_validator(mode="after")
    def _space_is_of_trainings(self) -> SweepStage:
        if self.lora is None or self.strategy != "ddp" or self.workers != 1:
            raise ValueError(
                "trials of a sweep are adapters that share one base in a process; "
                "give lora, and leave workers and strategy to train stages"
            )
        if self.algorithm.answer_tokens:
            raise ValueError(
                f"trials of a sweep learn from one set of rows, and algorithm '{self.algorithm.name}' draws "
                "its own; give each setting a train stage"
            )
        for path, values in self.space.items():
            if SHORT.get(path, path) in SHARED:
                raise ValueError(
                    f"space.{path}: trials of a sweep share {path}; sweep it in stages of its own"
                )
            if isinstance(values, Range) and self.search.name == "grid":
                raise ValueError(f"space.{path} is a range, a grid has lists; set search: random or optuna")
            ends = values if isinstance(values, list) else [values.low, values.high]
            if not ends:
                raise ValueError(f"space.{path} has no values; give some or remove it")
            for value in ends:
                self._check(path, value)
        if self.held_out_rows == 0:
            raise ValueError("a sweep compares trials on held-out rows; set held_out_rows above 0")
        return self

    @model_validator(mode="after")
    def _population_lives_at_once(self) -> SweepStage:
        s = self.stopping
        if not isinstance(s, Pbt):
            return self
        if self.search.name == "optuna":
            raise ValueError("stopping pbt makes its own proposals; set search: grid or random, not optuna")
        if self.trials < 2:
            raise ValueError(
                "stopping pbt needs a population of 2 trials or more; widen the space or the search"
            )
        if self.trials > self.parallel:
            raise ValueError(
                f"stopping pbt needs its {self.trials} trials at once and parallel is {self.parallel}; "
                f"set parallel: {self.trials}"
            )
        if s.every >= self.measures:
            raise ValueError(
                f"stopping.every {s.every} is not less than measures {self.measures}, so no trial would ever "
                "copy another; lower every or raise measures"
            )
        for path in s.mutate:
            if path not in self.space:
                raise ValueError(
                    f"stopping.mutate names {path}, which the space does not have; add its values"
                )
        return self

    def _check(self, path: str, value: Any) -> None:
        try:
            self.trial({path: value})
        except (ValidationError, KeyError, TypeError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "no such field"
            raise ValueError(
                f"space.{path} = {value!r}: {problem}; paths are fields of a train stage"
            ) from None

    @property
    def trials(self) -> int:
        """How many there will be."""
        return len(self.combinations()) if isinstance(self.search, Grid) else self.search.trials

    def combinations(self) -> list[dict[str, Any]]:
        """Every point of a grid."""
        lists = {path: values for path, values in self.space.items() if isinstance(values, list)}
        return [dict(zip(lists, point, strict=True)) for point in product(*lists.values())]

    def trial(self, point: dict[str, Any], name: str = "trial") -> TrainStage:
        """The training that a point of the space stands for.

        Raises ``pydantic.ValidationError`` if a value is not allowed, ``KeyError`` for an unknown path.
        """
        fields = self.model_dump(exclude=set(self.OWN), exclude_unset=True) | {"kind": "train", "name": name}
        assert self.lora is not None
        fields["lora"] = {k: v for k, v in self.lora.model_dump().items() if k != "preset"}
        fields["algorithm"] = self.algorithm.model_dump()
        for path, value in point.items():
            if path != "alpha_ratio":
                _put(fields, SHORT.get(path, path).split("."), value)
        if "alpha_ratio" in point:
            fields["lora"]["alpha"] = point["alpha_ratio"] * fields["lora"]["rank"]
        return TrainStage.model_validate(fields)

    @property
    def largest_rank(self) -> int:
        values = self.space.get("rank", self.space.get("lora.rank", [super().largest_rank]))
        return max(values) if isinstance(values, list) else int(values.high)

    @property
    def processes(self) -> int:
        return -(-self.parallel // self.per_process)

    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in super().settings().items() if k not in ("parallel", "per_process")}


def _put(fields: dict[str, Any], path: list[str], value: Any) -> None:
    known = {"lora": Lora.model_fields}.get(path[0]) if len(path) > 1 else TrainStage.model_fields
    if path[0] != "algorithm" and (known is None or path[-1] not in known):
        raise KeyError(".".join(path))
    for part in path[:-1]:
        fields = fields.setdefault(part, {})
    fields[path[-1]] = value
