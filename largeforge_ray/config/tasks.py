"""What an ``evaluate`` stage's ``tasks`` may say: a task of the library, or the user's own."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from largeforge_ray.config.base import Name, Strict, by_name

LIBRARY = (
    *("mmlu", "hellaswag", "arc_easy", "arc_challenge", "truthfulqa_mc1", "truthfulqa_mc2"),
    *("truthfulqa_gen", "gsm8k", "humaneval"),
)
HARNESS = "harness:"
"""Before the name of any other task of lm-eval."""
FEWSHOT_SEED = 1234
"""lm-eval's own, so that its examples are ours."""

Perturbation = Literal["typos", "case", "options", "paraphrase"]
Check = Literal["exact", "number", "contains", "json", "code", "choice"]


def _known(name: str) -> str:
    if name in LIBRARY or (name.startswith(HARNESS) and name != HARNESS):
        return name
    near = difflib.get_close_matches(name, LIBRARY, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(each) for each in near)}? " if near else ""
    raise ValueError(
        f"'{name}' is no task of the library; {hint}Supported: [{', '.join(LIBRARY)}], {HARNESS}<any of "
        "lm-eval>, or your own with prompt or function"
    )


class TaskOptions(Strict):
    """What every task may say."""

    limit: int | None = Field(
        None, ge=1, description="The first so many; of a task in several parts evenly from all of them."
    )
    samples: int = Field(1, ge=1, description="Answers drawn to each item, for pass@k.")
    perturb: list[Perturbation] = Field([], description="Variants of each item, to measure robustness.")
    group: str | None = Field(None, description="A field of the document, whose groups are compared.")


class LibraryTask(TaskOptions):
    """A published task. Its documents are in ``source``, a file or a folder, or come from the hub."""

    name: Annotated[str, AfterValidator(_known)]
    source: str | None = Field(None, min_length=1, description="Relative to the manifest.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before the question; the task's own.")
    seed: int = Field(FEWSHOT_SEED, description="Of the choice of examples.")
    chat: bool = Field(False, description="Ask in the model's chat template instead of plain text.")


class OwnTask(TaskOptions):
    """A task over the user's rows, by templates or by a Python file.

    ``prompt``, ``answer`` and ``choices`` are Jinja templates over the row; without braces each is the name
    of a field. ``function`` is a file that defines ``item(row) -> dict`` with prompt, answer and choices,
    and may define ``score(answer_text, row) -> float`` in 0 to 1 in the place of a check.
    """

    name: Name
    source: str = Field(min_length=1, description="jsonl, json, csv or parquet; relative to the manifest.")
    prompt: str | None = Field(None, min_length=1)
    function: str | None = Field(None, pattern=r"\.py$", description="Relative to the manifest.")
    system: str | None = Field(None, min_length=1, description="The system's turn, a template or plain text.")
    choices: str | list[str] | None = Field(
        None, description="A field that holds a list, or a template for each choice."
    )
    answer: str | None = Field(
        None, min_length=1, description="With choices: the text or place of the true one."
    )
    check: Check | None = Field(None, description="How answers are judged; with choices always choice.")
    slice: str | None = Field(None, description="A field, whose values are reported one by one.")
    max_tokens: int = Field(256, ge=1)
    stop: list[str] = Field([])
    chat: bool = Field(True, description="Ask in the model's chat template instead of plain text.")

    @model_validator(mode="after")
    def _rows_become_items_in_one_way(self) -> OwnTask:
        if (self.prompt is None) == (self.function is None):
            raise ValueError(f"task '{self.name}' needs prompt or function, and not both; give one")
        if self.function and (self.answer or self.choices is not None):
            raise ValueError(
                f"the function of task '{self.name}' gives answer and choices; leave them out here"
            )
        if self.prompt and not self.answer:
            raise ValueError(f"task '{self.name}' has no answer to compare with; name its field")
        return self

    @model_validator(mode="after")
    def _check_fits_the_choices(self) -> OwnTask:
        if self.choices is not None and self.check not in (None, "choice"):
            raise ValueError(f"check '{self.check}' judges words, and there are choices; leave check out")
        if self.prompt and self.choices is None and self.check in (None, "choice"):
            raise ValueError(
                f"task '{self.name}' has no choices, so a check judges its answers; "
                "Supported: [exact, number, contains, json, code]"
            )
        if self.name in LIBRARY:
            raise ValueError(f"'{self.name}' is a task of the library; give yours another name")
        if self.system and not self.chat:
            raise ValueError("system is a turn of a chat, and chat is false; leave one of them out")
        return self


OWN_FIELDS = ("prompt", "function", "choices", "answer", "check")


def _which(value: Any) -> str:
    if isinstance(value, dict):
        return "own" if any(field in value for field in OWN_FIELDS) else "library"
    return "own" if isinstance(value, OwnTask) else "library"


TaskEntry = Annotated[
    Annotated[LibraryTask, Tag("library")] | Annotated[OwnTask, Tag("own")],
    Discriminator(_which),
    BeforeValidator(by_name),
]
"""``mmlu``, ``{name: mmlu, limit: 200}``, or an own task with its ``prompt`` or ``function``."""
