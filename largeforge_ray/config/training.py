"""What a ``train`` stage may say: the algorithm, what of the model is trained, and on how many workers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from largeforge_ray.config.base import Ref, StageBase, Strict

Form: TypeAlias = Literal["prompt", "chat", "preference", "unpaired"]
"""A dataset's rows: questions; whole chats; a prompt with a better and a worse answer; judged chats."""


class AlgorithmBase(Strict):
    """``form`` is the rows an algorithm learns from; ``compares`` says that it needs a reference model."""

    form: ClassVar[Form]
    compares: ClassVar[bool] = False

    @property
    def caches_reference(self) -> bool:
        return False

    @property
    def answer_tokens(self) -> int:
        """What a row leaves free of ``max_tokens`` for an answer to be drawn."""
        return 0


class Sft(AlgorithmBase):
    """Supervised fine-tuning on the assistant's tokens, Ouyang et al. 2022 (arXiv:2203.02155)."""

    form: ClassVar[Form] = "chat"
    name: Literal["sft"] = "sft"


class ComparedWithReference(AlgorithmBase):
    """Learns relative to the model before training, which is the base with the adapter off."""

    compares: ClassVar[bool] = True
    beta: float = Field(0.1, gt=0.0, description="How strongly the model is held to its reference.")
    reference: Literal["cached", "in_loop"] = Field(
        "cached", description="Reference log-probabilities once before training, or anew in every step."
    )

    @property
    def caches_reference(self) -> bool:
        return self.reference == "cached"


class Dpo(ComparedWithReference):
    """Direct preference optimisation, Rafailov et al. 2023 (arXiv:2305.18290).

    ``loss: ipo`` is Azar et al. 2023 (arXiv:2310.12036), ``loss: hinge`` Zhao et al. 2023 (arXiv:2305.10425).
    """

    form: ClassVar[Form] = "preference"
    name: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5, description="Share of pairs taken to be swapped.")

    @model_validator(mode="after")
    def _smoothing_is_of_the_sigmoid(self) -> Dpo:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing belongs to loss 'sigmoid', not to '{self.loss}'; remove one")
        return self


class Kto(ComparedWithReference):
    """Kahneman-Tversky optimisation, Ethayarajh et al. 2024 (arXiv:2402.01306)."""

    form: ClassVar[Form] = "unpaired"
    name: Literal["kto"] = "kto"
    desirable_weight: float = Field(1.0, gt=0.0)
    undesirable_weight: float = Field(1.0, gt=0.0)


class Orpo(AlgorithmBase):
    """Odds ratio preference optimisation, Hong et al. 2024 (arXiv:2403.07691)."""

    form: ClassVar[Form] = "preference"
    name: Literal["orpo"] = "orpo"
    weight: float = Field(
        0.1, gt=0.0, description="Lambda of the paper: the odds ratio beside the likelihood."
    )


class Simpo(AlgorithmBase):
    """Simple preference optimisation, Meng et al. 2024 (arXiv:2405.14734)."""

    form: ClassVar[Form] = "preference"
    name: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0.0)
    gamma: float = Field(1.0, ge=0.0, description="Target margin between the two rewards.")


class Reward(AlgorithmBase):
    """A reward model on pairs, Bradley and Terry 1952; Ouyang et al. 2022 (arXiv:2203.02155)."""

    form: ClassVar[Form] = "preference"
    name: Literal["reward"] = "reward"
    centering: float = Field(
        0.0, ge=0.0, description="Weight of the squared sum of both rewards, arXiv:2312.09244."
    )


class Grpo(AlgorithmBase):
    """Group relative policy optimisation, Shao et al. 2024 (arXiv:2402.03300): learns from its own answers.

    The mean over tokens and the wider upper clip are DAPO's, Yu et al. 2025 (arXiv:2503.14476).
    """

    form: ClassVar[Form] = "prompt"
    name: Literal["grpo"] = "grpo"
    group: int = Field(8, ge=2, le=64, description="Answers to a prompt, judged against each other.")
    max_new_tokens: int = Field(128, ge=1, description="Where an answer is cut off.")
    reward_model: Ref | None = Field(
        None, description="A stage with algorithm reward, whose score takes the place of the rows' checks."
    )
    beta: float = Field(0.0, ge=0.0, description="Weight of the divergence from the base.")
    clip: float = Field(0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(0.28, gt=0.0)
    updates: int = Field(1, ge=1, description="Updates on a step's answers before new ones are drawn.")
    max_correction: float = Field(
        2.0, ge=1.0, description="Cap on a token's weight where engine and trainer differ about it."
    )

    @property
    def answer_tokens(self) -> int:
        return self.max_new_tokens


ALGORITHMS: dict[str, type[AlgorithmBase]] = {
    "sft": Sft,
    "dpo": Dpo,
    "orpo": Orpo,
    "kto": Kto,
    "simpo": Simpo,
    "reward": Reward,
    "grpo": Grpo,
}


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Algorithm = Annotated[
    Sft | Dpo | Orpo | Kto | Simpo | Reward | Grpo, Field(discriminator="name"), BeforeValidator(_by_name)
]
"""``algorithm: dpo``, or ``algorithm: {name: dpo, beta: 0.2}``."""

PRESETS: dict[str, dict[str, Any]] = {
    "7b": {"rank": 16, "alpha": 32, "targets": ["attention"]},
    "13b": {"rank": 32, "alpha": 64, "targets": ["attention", "mlp"]},
    "70b": {"rank": 64, "alpha": 128, "targets": ["all-linear"]},
}
"""Published starting points by model size; each is the upper end of its range."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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
    targets: Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)] = Field(
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


class Training(StageBase):
    """What a training is given, be it one or each of a sweep's."""

    algorithm: Algorithm = Sft()
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
        }
    )
    """How the work is laid out. It changes nothing but rounding, so a run may go on with other values."""

    @property
    def artifact_kind(self) -> str:
        return "model" if self.lora is None else "adapter"

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
        if self.algorithm.name != "grpo":
            return self
        if self.lora is None or self.lora.dora:
            raise ValueError(
                "algorithm 'grpo' hands its adapter to the engine in every step, and the engine loads no "
                "DoRA adapter and no whole model; give lora settings with dora: false"
            )
        if self.strategy in DIVIDES_WEIGHTS:
            raise ValueError(
                f"strategy '{self.strategy}' divides weights, and algorithm 'grpo' needs them whole to draw "
                "answers; set strategy: ddp, zero1 or zero2"
            )
        if self.algorithm.max_new_tokens >= self.max_tokens:
            raise ValueError(
                f"max_new_tokens {self.algorithm.max_new_tokens} leaves no room for a prompt in max_tokens "
                f"{self.max_tokens}; raise max_tokens or lower max_new_tokens"
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Training:
        if self.keep == "best" and not self.held_out_rows:
            raise ValueError("keep 'best' goes by held-out rows; set held_out_rows above 0 or keep: newest")
        return self

    def references(self) -> dict[str, str]:
        judge = getattr(self.algorithm, "reward_model", None)
        return {"data": self.data} | ({"algorithm.reward_model": judge} if judge else {})

    def settings(self) -> dict[str, Any]:
        algorithm = self.algorithm.model_dump(mode="json", exclude={"reward_model"})
        kept = super().settings() | {"algorithm": algorithm}
        return {k: v for k, v in kept.items() if k not in self.WHERE}

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
