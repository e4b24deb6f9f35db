"""What a report says, as plain values: collected from the store once, rendered without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """One attempt at a stage, in seconds since the run's first event."""

    start_s: float
    end_s: float
    outcome: str
    """finished, failed or running."""


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage of the plan and what became of it (``state``: planned, running, finished, failed, cached)."""

    name: str
    kind: str
    artifact_kind: str
    key: str
    state: str
    spans: tuple[Span, ...] = ()
    cached_at_s: float | None = None
    seconds: float | None = None
    phases: tuple[tuple[str, float], ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True)
class LossCurve:
    """The training loss of one stage: (step, nats per token) pairs with rising steps.

    ``marks`` are steps at which another trial's weights were taken over, each with a sentence. ``held_out``
    is the loss on held-out rows, in pairs like those of ``points``.
    """

    stage: str
    points: tuple[tuple[float, float], ...]
    not_finite: int = 0
    marks: tuple[tuple[float, str], ...] = ()
    held_out: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class HeatCell:
    """The best held-out loss of the trials in one place; ``stopped`` if all of them were ended early."""

    held_out: float
    trials: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class TrialView:
    """One trial of a sweep: its settings, and whose weights it went on from, first to last, in words."""

    name: str
    point: str
    held_out: float
    step: int
    stopped: bool
    seconds: float
    taken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep by two of its dimensions; ``cells`` are rows of columns. Trials come best first."""

    stage: str
    down: str
    across: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[HeatCell | None, ...], ...]
    low: float
    high: float
    trials: tuple[TrialView, ...]

    @property
    def population(self) -> bool:
        """Whether a trial took another one over."""
        return any(trial.taken for trial in self.trials)

    def warmth(self, cell: HeatCell) -> int:
        """0 (the worst cell) to 100 (the best)."""
        return (
            round(100 * (self.high - cell.held_out) / (self.high - self.low)) if self.high > self.low else 100
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval; ``confidence`` is a share such as 0.95, None if unrecorded."""

    value: float
    low: float
    high: float
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One measured expert. ``accuracy`` is its mean quality, 0 to 1, over ``n`` items."""

    name: str
    accuracy: Interval
    n: int
    errors: int


@dataclass(frozen=True, slots=True)
class Gain:
    """The paired difference in quality between two experts on the same ``n`` items."""

    expert: str
    against: str
    interval: Interval
    n: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluate stage measured. ``summary`` is its ``evaluation.json``, None if it wrote none."""

    stage: str
    candidates: tuple[Candidate, ...]
    gains: tuple[Gain, ...]
    summary: dict[str, Any] | None = None

    def candidate(self, name: str) -> Candidate | None:
        return next((one for one in self.candidates if one.name == name), None)


@dataclass(frozen=True, slots=True)
class CostPoint:
    """Mean price for a thousand tokens, and mean quality 0 to 1."""

    name: str
    cost: float
    quality: float


@dataclass(frozen=True, slots=True)
class RouterView:
    """What a router stage measured on ``held_out`` prompts.

    ``by_kind`` has every policy's accuracy. ``confusion`` counts by the best expert, then by the chosen one;
    ``bins`` are (prompts, mean confidence, mean quality). ``marks`` are what needs no policy.
    """

    stage: str
    policy: str
    held_out: int
    by_kind: tuple[tuple[str, float], ...]
    experts: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    ece: float
    bins: tuple[tuple[int, float, float], ...]
    curve: tuple[CostPoint, ...]
    marks: tuple[CostPoint, ...]


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promote stage decided. ``live`` names the experts of the router it published."""

    stage: str
    candidate: str
    state: str
    live: tuple[str, ...] = ()
    gain: Interval | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Funnel:
    """What a teacher's samples came to. ``partial`` if the stage has not finished.

    ``duplicates`` counts kept samples that say what another one says, ``near_duplicates`` what is nearly an
    earlier row, ``made`` the rows of the dataset: chats, pairs or prompts.
    """

    stage: str
    prompts: int
    kept: int
    dropped: int
    failed: int
    reasons: tuple[tuple[str, int], ...] = ()
    duplicates: int = 0
    near_duplicates: int = 0
    made: int | None = None
    tokens: int | None = None
    usd: float | None = None
    partial: bool = False

    @property
    def samples(self) -> int:
        return self.kept + self.dropped + self.failed


@dataclass(frozen=True, slots=True)
class ItemPair:
    """One item answered by two experts; ``group`` is improved, worse or unsolved."""

    item_id: str
    task: str
    group: str
    prompt: str | None
    expected: str | None
    base_answer: str
    expert_answer: str
    base_quality: float
    expert_quality: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The items of one evaluation on which two experts differ most."""

    stage: str
    base: str
    expert: str
    pairs: tuple[ItemPair, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """An artifact in the lineage; ``state`` is present, cached or absent."""

    key: str
    name: str
    kind: str
    state: str
    in_run: bool


@dataclass(frozen=True, slots=True)
class Lineage:
    """Artifacts and (parent key, child key) edges; ``omitted`` counts ancestors left out."""

    nodes: tuple[Node, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    omitted: int = 0


@dataclass(frozen=True, slots=True)
class StageCost:
    """The numbers a stage's artifact records as its cost. ``paid`` is False if it was already there."""

    stage: str
    values: dict[str, float]
    paid: bool


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything on the page. ``absent`` maps a section to the sentence that says why it is empty."""

    run: str
    manifest: str
    created: str
    state: str
    total_s: float | None
    stages: tuple[StageView, ...]
    losses: tuple[LossCurve, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    routers: tuple[RouterView, ...] = ()
    promotions: tuple[Promotion, ...] = ()
    funnels: tuple[Funnel, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    lineage: Lineage = field(default_factory=Lineage)
    costs: tuple[StageCost, ...] = ()
    manifest_text: str = ""
    absent: dict[str, str] = field(default_factory=dict)
