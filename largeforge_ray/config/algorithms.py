"""What a ``train`` stage learns by: each algorithm's options."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from largeforge_ray.config.base import Ref, Strict, by_name

Form: TypeAlias = Literal["prompt", "chat", "preference", "unpaired", "rationale"]
"""A dataset's rows: questions; whole chats; a prompt with a better and a worse answer; judged chats; chats
with the reasoning behind their answers."""


class AlgorithmBase(Strict):
    """``form`` is the rows an algorithm learns from; ``compares`` says that it needs a reference model,
    ``taught`` is the option of a teach stage that keeps what it reads beside a teacher's answers."""

    form: ClassVar[Form]
    compares: ClassVar[bool] = False
    taught: ClassVar[Literal["topk", "hidden"] | None] = None

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


class Distill(AlgorithmBase):
    """Distillation: a teacher's probabilities beside its tokens, Hinton et al. 2015 (arXiv:1503.02531).

    ``divergence: reverse`` is Gu et al. 2023 (arXiv:2306.08543), ``jsd`` Agarwal et al. 2023
    (arXiv:2306.13649) with both halves weighing the same.
    """

    form: ClassVar[Form] = "chat"
    taught: ClassVar[Literal["topk", "hidden"] | None] = "topk"
    name: Literal["distill"] = "distill"
    alpha: float = Field(
        0.5, ge=0.0, le=1.0, description="Weight of the teacher's tokens; the rest is its probabilities'."
    )
    temperature: float = Field(
        1.0, gt=0.0, description="Of teacher and student; above 1 unlikely tokens count for more."
    )
    divergence: Literal["forward", "reverse", "jsd"] = "forward"


class Features(AlgorithmBase):
    """Feature distillation: a teacher's tokens, and its hidden states through a learned projection, Romero et
    al. 2014 (arXiv:1412.6550), Jiao et al. 2019 (arXiv:1909.10351)."""

    form: ClassVar[Form] = "chat"
    taught: ClassVar[Literal["topk", "hidden"] | None] = "hidden"
    name: Literal["features"] = "features"
    weight: float = Field(1.0, gt=0.0, description="Of the states beside the teacher's tokens.")
    layers: list[int] | None = Field(
        None,
        min_length=1,
        description="The student's layer for each of the teacher's that were kept, numbers from 0; where "
        "they lie in proportion if none.",
    )
    width: int | None = Field(None, ge=1, description="Of the teacher's states; the dataset says it.")


class Rationale(AlgorithmBase):
    """Answers and the reasoning behind them as two tasks, Hsieh et al. 2023 (arXiv:2305.02301)."""

    form: ClassVar[Form] = "rationale"
    name: Literal["rationale"] = "rationale"
    weight: float = Field(0.5, ge=0.0, description="Of the reasoning beside the answer.")
    ask: str = Field(
        "Explain the reasoning that leads to the answer.",
        min_length=1,
        description="What is put behind a prompt to ask for the reasoning.",
    )


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


class Drawing(AlgorithmBase):
    """Learns from its own answers to prompts."""

    form: ClassVar[Form] = "prompt"
    max_new_tokens: int = Field(128, ge=1, description="Where an answer is cut off.")

    @property
    def answer_tokens(self) -> int:
        return self.max_new_tokens


class Grpo(Drawing):
    """Group relative policy optimisation, Shao et al. 2024 (arXiv:2402.03300): learns from its own answers.

    The mean over tokens and the wider upper clip are DAPO's, Yu et al. 2025 (arXiv:2503.14476).
    """

    name: Literal["grpo"] = "grpo"
    group: int = Field(8, ge=2, le=64, description="Answers to a prompt, judged against each other.")
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


class OnPolicy(Drawing):
    """On-policy distillation, Gu et al. 2023 (arXiv:2306.08543), Agarwal et al. 2023 (arXiv:2306.13649): the
    student answers, and the teacher says how likely it finds each of its tokens."""

    name: Literal["on_policy"] = "on_policy"
    teacher: Ref = Field(
        description="base, or a stage that makes an adapter or a model of the same vocabulary."
    )
    group: int = Field(4, ge=1, le=64, description="Answers to a prompt.")


ALGORITHMS: dict[str, type[AlgorithmBase]] = {
    "sft": Sft,
    "distill": Distill,
    "features": Features,
    "rationale": Rationale,
    "dpo": Dpo,
    "orpo": Orpo,
    "kto": Kto,
    "simpo": Simpo,
    "reward": Reward,
    "grpo": Grpo,
    "on_policy": OnPolicy,
}


Algorithm = Annotated[
    Sft | Distill | Features | Rationale | Dpo | Orpo | Kto | Simpo | Reward | Grpo | OnPolicy,
    Field(discriminator="name"),
    BeforeValidator(by_name),
]
"""``algorithm: dpo``, or ``algorithm: {name: dpo, beta: 0.2}``."""
