"""What a ``train`` stage may say: the algorithm with its own options, and what of the model is trained."""

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


ALGORITHMS: dict[str, type[AlgorithmBase]] = {
    "sft": Sft,
    "dpo": Dpo,
    "orpo": Orpo,
    "kto": Kto,
    "simpo": Simpo,
    "reward": Reward,
}


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Algorithm = Annotated[
    Sft | Dpo | Orpo | Kto | Simpo | Reward, Field(discriminator="name"), BeforeValidator(_by_name)
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
    (arXiv:2402.09353). ``preset`` fills in rank, alpha and targets where they are not given.
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

    def with_preset(self, parameters: int) -> Lora:
        """This with its preset filled in; ``auto`` chooses by the base model's number of ``parameters``."""
        if self.preset is None:
            return self
        size = self.preset
        if size == "auto":
            size = "7b" if parameters < 10e9 else "13b" if parameters < 40e9 else "70b"
        given = {f: getattr(self, f) for f in self.model_fields_set - {"preset"}}
        return Lora(**(PRESETS[size] | given))


class Training(StageBase):
    """What a training is given, be it one or each of a sweep's."""

    artifact_kind: ClassVar[str] = "adapter"
    algorithm: Algorithm = Sft()
    data: Ref
    lora: Lora = Lora()
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
    checkpoint_every: int = Field(20, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="The newest ones; older ones are removed.")
    held_out_rows: int = Field(
        64, ge=0, description="Rows of the dataset's test part measured before and after."
    )
    workers: int = Field(1, ge=1)
    seed: int = 0

    WHERE: ClassVar[frozenset[str]] = frozenset(
        {"batching", "tokens_per_pass", "workers", "checkpoint_every", "keep_checkpoints"}
    )
    """How the work is laid out. It changes nothing but rounding, so a run may go on with other values."""

    def references(self) -> dict[str, str]:
        return {"data": self.data}

    def settings(self) -> dict[str, Any]:
        return {k: v for k, v in super().settings().items() if k not in self.WHERE}

    @property
    def largest_rank(self) -> int:
        """What an engine has to make room for."""
        return self.lora.rank

    @property
    def processes(self) -> int:
        """How many processes hold the model at once."""
        return self.workers


class TrainStage(Training):
    """Fine-tune an adapter on a dataset with Ray Train."""

    kind: Literal["train"]
