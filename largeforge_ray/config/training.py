"""What a ``train`` stage may say: the algorithm, what of the model is trained, and on how many workers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from largeforge_ray.config.algorithms import Algorithm, Drawing, Sft
from largeforge_ray.config.base import OnCluster, Ref, Strict, as_list

PRESETS: dict[str, dict[str, Any]] = {
    "7b": {"rank": 16, "alpha": 32, "targets": ["attention"]},
    "13b": {"rank": 32, "alpha": 64, "targets": ["attention", "mlp"]},
    "70b": {"rank": 64, "alpha": 128, "targets": ["all-linear"]},
}
"""Published starting points by model size; each is the upper end of its range."""


class Lora(Strict):
    """Low-rank adaptation, Hu et al. 2021 (arXiv:2106.09685).

    ``rslora`` scales by alpha / sqrt(rank) (arXiv:2312.03732), ``dora`` learns the magnitude apart
    (arXiv:2402.09353). ``quantize: nf4`` is QLoRA, Dettmers et al. 2023 (arXiv:2305.14314): the frozen base
    in 4-bit NormalFloat with double quantisation, computing in bfloat16. ``preset`` fills in rank, alpha
    and targets where they are not given.
    """

    preset: Literal["auto", "7b", "13b", "70b"] | None = None
    rank: int = Field(8, ge=1, le=512)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    targets: Annotated[list[str], Field(min_length=1), BeforeValidator(as_list)] = Field(
        ["attention", "mlp"], description="Layer names, or the groups attention, mlp, all-linear."
    )
    rslora: bool = False
    dora: bool = False
    quantize: Literal["nf4"] | None = Field(None, description="How the frozen base is held in memory.")

    def with_preset(self, parameters: int) -> Lora:
        """This with its preset filled in; ``auto`` chooses by the base model's number of ``parameters``."""
        if self.preset is None:
            return self
        size = self.preset
        if size == "auto":
            size = "7b" if parameters < 10e9 else "13b" if parameters < 40e9 else "70b"
        given = {f: getattr(self, f) for f in self.model_fields_set - {"preset"}}
        return Lora(**(PRESETS[size] | given))


class Elastic(Strict):
    """As many workers as the cluster has room for, within these bounds."""

    min: int = Field(1, ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Elastic:
        if self.min >= self.max:
            raise ValueError(f"min {self.min} and max {self.max} break the rule min < max")
        return self


STRATEGIES: dict[str, str] = {
    "ddp": "every worker holds all of it",
    "zero1": "optimizer state is divided among the workers",
    "zero2": "optimizer state and gradients are divided among the workers",
    "zero3": "weights, gradients and optimizer state are divided among the workers",
    "fsdp2": "weights, gradients and optimizer state are divided among the workers",
}
"""DDP, Li et al. 2020; DeepSpeed ZeRO, Rajbhandari et al. 2020; FSDP2 of torch, Zhao et al. 2023."""
DIVIDES_WEIGHTS = ("zero3", "fsdp2")


class Training(OnCluster):
    """What a training is given, be it one or each of a sweep's."""

    algorithm: Algorithm = Sft()
    model: Ref = Field("base", description="What is trained: base, or a stage that makes a model.")
    data: Ref
    lora: Lora | None = Field(Lora(), description="null trains every weight and makes a model.")
    learning_rate: float = Field(2e-4, gt=0.0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    epochs: float = Field(1.0, gt=0.0)
    batch_size: int = Field(8, ge=1, description="Rows a step, over all workers.")
    max_tokens: int = Field(
        512, ge=8, description="Longest sequence trained on; a longer one is counted and left out."
    )
    batching: Literal["packed", "bucketed", "padded"] = Field(
        "packed",
        description="How a step's sequences share tensors; it changes the speed and not the loss.",
    )
    tokens_per_pass: int = Field(
        2048, ge=8, description="Tokens a worker holds at once; a step takes as many passes as it needs."
    )
    precision: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="What the model computes in; trained weights are kept in float32 either way."
    )
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="Share of the steps.")
    weight_decay: float = Field(0.0, ge=0.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    optimizer: Literal["adamw", "paged_adamw"] = Field(
        "adamw", description="paged_adamw keeps its state in memory that a GPU pages to the host."
    )
    checkpoint_every: int = Field(20, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="How many stay; older or worse ones are removed.")
    keep: Literal["newest", "best"] = Field(
        "newest", description="best measures at every checkpoint and keeps those of the least held-out loss."
    )
    held_out_rows: int = Field(
        64, ge=0, description="Rows of the dataset's test part measured before and after."
    )
    workers: int | Elastic = Field(
        1, description="A number, or {min, max} for what the cluster has room for."
    )
    strategy: Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"] = Field(
        "ddp", description="What workers hold of the weights and of the optimizer's state."
    )
    recompute: bool = Field(
        False, description="Compute activations again in the backward pass instead of keeping them."
    )
    probe: bool = Field(True, description="Load the finished adapter into the engine and compare its logits.")
    seed: int = 0

    WHERE: ClassVar[frozenset[str]] = frozenset(
        {
            "batching",
            "tokens_per_pass",
            "workers",
            "strategy",
            "recompute",
            "checkpoint_every",
            "keep_checkpoints",
            "probe",
            *OnCluster.PLACED,
        }
    )
    """How the work is laid out. It changes nothing but rounding, so a run may go on with other values."""

    @property
    def reads_base(self) -> bool:
        return self.model == "base"

    @property
    def artifact_kind(self) -> str:
        return "model" if self.lora is None else "adapter"

    @model_validator(mode="after")
    def _another_model_is_trained_whole(self) -> Training:
        if self.model != "base" and self.lora is not None:
            raise ValueError(
                f"model '{self.model}' with lora makes an adapter, and an engine serves adapters of the base "
                f"only; set lora: null, which trains all of '{self.model}' (sweeps and grpo need adapters, "
                "so they train the base)"
            )
        return self

    @model_validator(mode="after")
    def _workers_are_some(self) -> Training:
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError(f"workers {self.workers} is less than 1; give 1 or more, or {{min, max}}")
        return self

    @model_validator(mode="after")
    def _divided_weights_can_be_put_together(self) -> Training:
        if self.strategy in DIVIDES_WEIGHTS and self.lora is not None and self.lora.quantize:
            raise ValueError(
                f"strategy '{self.strategy}' divides weights and lora.quantize '{self.lora.quantize}' packs "
                "several into a byte; set strategy: ddp, zero1 or zero2"
            )
        if self.strategy != "ddp" and self.algorithm.name == "reward":
            raise ValueError(
                f"strategy '{self.strategy}' cannot divide a reward model, whose head runs apart from its "
                "layers; set strategy: ddp"
            )
        if self.strategy != "ddp" and self.algorithm.name == "features":
            raise ValueError(
                f"strategy '{self.strategy}' cannot divide the projection of algorithm 'features', which is "
                "no part of the model; set strategy: ddp"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_no_second_model(self) -> Training:
        if self.lora is None and self.algorithm.compares and not self.algorithm.caches_reference:
            raise ValueError(
                f"algorithm '{self.algorithm.name}' with reference 'in_loop' compares with the base in every "
                "step, and lora: null changes the base; set reference: cached"
            )
        return self

    @model_validator(mode="after")
    def _answers_can_be_drawn(self) -> Training:
        drawn = self.algorithm
        if not isinstance(drawn, Drawing):
            return self
        if self.lora is None or self.lora.dora:
            raise ValueError(
                f"algorithm '{drawn.name}' hands its adapter to the engine in every step, and it loads "
                "no DoRA adapter and no whole model; give lora settings with dora: false"
            )
        if self.strategy in DIVIDES_WEIGHTS:
            raise ValueError(
                f"strategy '{self.strategy}' divides weights, and algorithm '{drawn.name}' needs them whole "
                "to draw answers; set strategy: ddp, zero1 or zero2"
            )
        if drawn.max_new_tokens >= self.max_tokens:
            raise ValueError(
                f"max_new_tokens {drawn.max_new_tokens} leaves no room for a prompt in max_tokens "
                f"{self.max_tokens}; raise max_tokens or lower max_new_tokens"
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Training:
        if self.keep == "best" and not self.held_out_rows:
            raise ValueError("keep 'best' goes by held-out rows; set held_out_rows above 0 or keep: newest")
        return self

    def references(self) -> dict[str, str]:
        others = {f: getattr(self.algorithm, f, None) for f in ("reward_model", "teacher")}
        named = {f"algorithm.{f}": ref for f, ref in others.items() if ref not in (None, "base")}
        return {"data": self.data} | named | ({"model": self.model} if self.model != "base" else {})

    def settings(self) -> dict[str, Any]:
        algorithm = self.algorithm.model_dump(mode="json", exclude={"reward_model", "teacher"})
        kept = super().settings() | {"algorithm": algorithm}
        return {k: v for k, v in kept.items() if k not in (*self.WHERE, "model")}

    @property
    def largest_rank(self) -> int:
        """What an engine has to make room for."""
        return self.lora.rank if self.lora else 0

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the most workers."""
        w = self.workers
        return (w, w) if isinstance(w, int) else (w.min, w.max)

    @property
    def processes(self) -> int:
        """How many processes hold the model at once."""
        return self.bounds[1]


class TrainStage(Training):
    """Fine-tune an adapter on a dataset with Ray Train."""

    kind: Literal["train"]
