"""What a ``teach`` stage may say: who answers, what is made of the answers, and which of them stay."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from largeforge_ray.config.algorithms import Form
from largeforge_ray.config.base import OnCluster, Ref, Split, Strict, by_name
from largeforge_ray.config.filters import Contamination, Filter
from largeforge_ray.errors import ConfigError
from largeforge_ray.types import Message, Sampling


class Price(Strict):
    """US dollars for a thousand tokens."""

    per_1k_prompt: float = Field(ge=0.0)
    per_1k_completion: float = Field(ge=0.0)


class Endpoint(Strict):
    """An OpenAI-compatible server as a teacher. ``key_env`` names the variable that holds its key."""

    url: str = Field(pattern=r"^https?://", description="Up to and with /v1.")
    model: str = Field(min_length=1)
    key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    concurrency: int = Field(16, ge=1, description="Requests under way at once.")
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1, description="Of prompts and answers.")
    retries: int = Field(
        5, ge=0, description="After a refusal for load, a server error or a lost connection."
    )
    timeout_s: float = Field(120.0, gt=0.0)
    price: Price | None = None
    max_usd: float | None = Field(None, gt=0.0, description="The stage stops before it spends more.")

    @model_validator(mode="after")
    def _cap_has_a_price(self) -> Endpoint:
        if self.max_usd is not None and self.price is None:
            raise ValueError("max_usd caps what is spent, and no price says what that is; give price")
        return self


def _who(value: Any) -> str:
    return "stage" if isinstance(value, str) else "endpoint"


class Teacher(Strict):
    """Who answers, and what it is shown: ``instructions`` and ``examples`` reach the teacher only.

    ``model`` is ``base``, a stage that makes an adapter or a model, or an endpoint.
    """

    model: Annotated[
        Annotated[Ref, Tag("stage")] | Annotated[Endpoint, Tag("endpoint")], Discriminator(_who)
    ] = "base"
    instructions: str | None = None
    examples: list[Message] = Field([])
    temperature: float = Field(0.7, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(128, ge=1)

    @model_validator(mode="after")
    def _examples_alternate(self) -> Teacher:
        roles = [m.get("role") for m in self.examples]
        if roles != ["user", "assistant"] * (len(roles) // 2) or any(
            set(m) != {"role", "content"} for m in self.examples
        ):
            raise ValueError("examples must be user and assistant turns in turn, each with role and content")
        return self


class Answers(Strict):
    """Chats: each prompt with every different answer that stays."""

    form: ClassVar[Form] = "chat"
    name: Literal["answers"] = "answers"


class Rationales(Strict):
    """Chats with the reasoning beside the answer, Hsieh et al. 2023 (arXiv:2305.02301).

    The teacher is asked to reason first and to put the answer on a last line after ``marker``.
    """

    form: ClassVar[Form] = "rationale"
    name: Literal["rationales"] = "rationales"
    marker: str = Field("Answer:", min_length=1)


class Preferences(Strict):
    """Pairs of the best and the worst of a prompt's answers.

    By ``check`` the right ones are better than the wrong ones; by ``judge`` the teacher grades each answer
    from 1 to 10, Zheng et al. 2023 (arXiv:2306.05685); by ``reward`` a reward model's score decides.
    """

    form: ClassVar[Form] = "preference"
    name: Literal["preferences"] = "preferences"
    by: Literal["check", "judge", "reward"] = "check"
    reward_model: Ref | None = None
    pairs: int = Field(1, ge=1, description="At most, of one prompt.")

    @model_validator(mode="after")
    def _reward_has_its_model(self) -> Preferences:
        if (self.by == "reward") != (self.reward_model is not None):
            raise ValueError(
                f"by '{self.by}' and reward_model '{self.reward_model or 'none'}' do not fit; by 'reward' "
                "needs a reward_model, and the others have none"
            )
        return self


class Revisions(Strict):
    """Answers that the teacher criticises by a constitution and writes anew, Bai et al. 2022
    (arXiv:2212.08073).

    ``pairs`` makes preference pairs of the revision and the first answer, otherwise they are chats.
    """

    form: ClassVar[Form] = "chat"
    name: Literal["revisions"] = "revisions"
    constitution: str | None = Field(None, description="A YAML file relative to the manifest; ours if none.")
    rounds: int = Field(1, ge=1, le=4)
    pairs: bool = False


class Prompts(Strict):
    """New prompts from those given: ``self_instruct`` writes others like them, Wang et al. 2022
    (arXiv:2212.10560), ``evolve`` makes each harder, Xu et al. 2023 (arXiv:2304.12244)."""

    form: ClassVar[Form] = "prompt"
    name: Literal["prompts"] = "prompts"
    method: Literal["self_instruct", "evolve"] = "self_instruct"
    shown: int = Field(4, ge=1, le=16, description="Given prompts in one request of self_instruct.")
    asked: int = Field(4, ge=1, le=16, description="New ones wanted of one request of self_instruct.")


MAKES: dict[str, type[Strict]] = {
    "answers": Answers,
    "rationales": Rationales,
    "preferences": Preferences,
    "revisions": Revisions,
    "prompts": Prompts,
}
Make = Annotated[
    Answers | Rationales | Preferences | Revisions | Prompts,
    Field(discriminator="name"),
    BeforeValidator(by_name),
]
"""``make: preferences``, or ``make: {name: preferences, by: judge}``."""


class TeachStage(OnCluster):
    """Ask a teacher for several answers a prompt and keep those that the checks and filters accept."""

    makes: ClassVar[str] = "dataset"
    kind: Literal["teach"]
    prompts: Ref
    teacher: Teacher = Teacher()
    make: Make = Answers()
    samples: int = Field(4, ge=1, le=64)
    keep: Literal["verified", "all"] = "verified"
    split: Split = Split(test=0.0)
    filters: list[Filter] = Field([], description="In their order; the first that refuses is the reason.")
    topk: int | None = Field(
        None, ge=1, description="Keep the teacher's most likely tokens at every place of an answer."
    )
    hidden: list[int] | None = Field(
        None,
        min_length=1,
        description="Keep the teacher's states after these layers, from 0, at every place of an answer.",
    )
    max_failed: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of rows without an answer over which the stage fails."
    )
    engines: int = Field(1, ge=1, description="Engines at once. It changes the time and nothing else.")
    seed: int = 0

    WHERE: ClassVar[frozenset[str]] = frozenset({"engines", "max_failed"}) | OnCluster.PLACED
    """How the work is laid out, and when it is given up; no row depends on it."""

    def references(self) -> dict[str, str]:
        named = {"prompts": self.prompts}
        if isinstance(self.teacher.model, str) and self.teacher.model != "base":
            named["teacher.model"] = self.teacher.model
        if isinstance(self.make, Preferences) and self.make.reward_model:
            named["make.reward_model"] = self.make.reward_model
        for i, one in enumerate(self.filters):
            if isinstance(one, Contamination):
                named |= {f"filters.{i}.against.{j}": ref for j, ref in enumerate(one.against)}
        return named

    def settings(self) -> dict[str, Any]:
        kept = self.model_dump(mode="json", exclude={"name", "prompts", *self.WHERE})
        model = self.teacher.model
        # Of an endpoint only who answers counts, not how often it may be asked.
        kept["teacher"]["model"] = [model.url, model.model] if isinstance(model, Endpoint) else None
        kept["make"].pop("reward_model", None)
        for one in kept["filters"]:
            one.pop("against", None)
        return kept

    @property
    def stays(self) -> Literal["verified", "all"]:
        """``keep``; pairs need the wrong answers too."""
        return "all" if isinstance(self.make, Preferences) else self.keep

    @property
    def form(self) -> Form:
        """The rows that it makes."""
        if isinstance(self.make, Revisions) and self.make.pairs:
            return "preference"
        return self.make.form

    @property
    def reads_base(self) -> bool:
        return self.teacher.model == "base"

    @property
    def sampling(self) -> Sampling:
        t = self.teacher
        return Sampling(temperature=t.temperature, top_p=t.top_p, max_tokens=t.max_tokens, seed=self.seed)

    def check_layers(self, total: int) -> None:
        """Raises ``ConfigError`` if a teacher of ``total`` layers lacks one whose states are wanted."""
        if self.hidden and self.hidden[-1] >= total:
            raise ConfigError(
                f"hidden of stage '{self.name}' names layer {self.hidden[-1]}, and the teacher has layers 0 "
                f"to {total - 1}; leave it out"
            )

    @model_validator(mode="after")
    def _pairs_have_two_answers(self) -> TeachStage:
        if isinstance(self.make, Preferences) and self.samples < 2:
            raise ValueError("preferences compare answers to one prompt; set samples to 2 or more")
        return self

    @model_validator(mode="after")
    def _signals_are_seen(self) -> TeachStage:
        for name in ("topk", "hidden"):
            if getattr(self, name) is None:
                continue
            if isinstance(self.teacher.model, Endpoint):
                raise ValueError(
                    f"{name} needs token ids, which an endpoint does not give; name a local teacher"
                )
            if self.make.name != "answers":
                raise ValueError(
                    f"{name} belongs to answers as they were drawn, not to make '{self.make.name}'"
                )
        return self

    @model_validator(mode="after")
    def _layers_are_some_in_order(self) -> TeachStage:
        layers = self.hidden
        if layers is not None and (layers[0] < 0 or layers != sorted(set(layers))):
            raise ValueError(f"hidden {layers} lists each layer once, ascending from 0; put them in order")
        return self
