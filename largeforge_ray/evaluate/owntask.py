"""The user's own tasks: rows to items by Jinja templates or by a Python file.

def item(row):                     # what is asked: prompt, answer, and if any are given choices, system
    return {"prompt": row["question"], "answer": row["answer"]}

def score(answer_text, row):       # optional, in the place of a check: from 0 to 1
    return float(row["answer"] in answer_text)
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from largeforge_ray.config.tasks import OwnTask
from largeforge_ray.errors import ConfigError, DataError
from largeforge_ray.evaluate.formats import Row, read
from largeforge_ray.evaluate.items import item, sha256_of

ITEM_FIELDS = ("prompt", "answer", "choices", "system")


def own_items(entry: OwnTask, folder: Path) -> Iterator[dict[str, Any]]:
    """The items of an own task, in the file's order. Raises ``DataError`` naming file, line and field."""
    module = None if entry.function is None else load(str((folder / entry.function).resolve()))
    for number, row in enumerate(read(folder / entry.source)):
        if number == entry.limit:
            return
        said = _rendered(entry, row) if module is None else _called(entry, row, module)
        yield _item(entry, row, number, said, module)


def _rendered(entry: OwnTask, row: Row) -> dict[str, Any]:
    choices = entry.choices
    if isinstance(choices, list):
        choices = [str(render(each, row, "choices")) for each in choices]
    elif choices is not None:
        choices = _value(choices, row, "choices")
    return {
        "prompt": _value(entry.prompt or "", row, "prompt"),
        "answer": _value(entry.answer or "", row, "answer"),
        "choices": choices,
        "system": render(entry.system, row, "system") if entry.system else None,
    }


def _called(entry: OwnTask, row: Row, module: Any) -> dict[str, Any]:
    said = _run(module.item, f"{row.where}: item of {entry.function}", row.fields)
    if not isinstance(said, dict) or "prompt" not in said or not set(said) <= set(ITEM_FIELDS):
        raise DataError(
            f"{row.where}: item of {entry.function} gave {said!r}"[:300]
            + f"; it returns a dict with prompt, and of {', '.join(ITEM_FIELDS[1:])} what there is"
        )
    return dict.fromkeys(ITEM_FIELDS) | said


def _item(entry: OwnTask, row: Row, number: int, said: dict[str, Any], module: Any) -> dict[str, Any]:
    prompt, system = said["prompt"], said["system"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise row.bad("prompt", f"must be text that is not empty; found {prompt!r}"[:300])
    turns = [{"role": "system", "content": system}] if system else []
    asked: dict[str, Any] = {"messages": [*turns, {"role": "user", "content": prompt}]}
    if not entry.chat:
        asked = {"context": prompt}
    if said["choices"] is None:
        asked |= _words(entry, row, said["answer"], module)
    else:
        texts = _texts(row, said["choices"])
        delimiter = "" if entry.chat or prompt[-1].isspace() else " "
        asked |= {
            "kind": "choice",
            "check": "choice",
            "choices": [f"{delimiter}{text}" for text in texts],
            "answer": _place(row, said["answer"], texts),
            "rules": {"metric": "acc", "delimiter": delimiter},
        }
    slice_, group = (str(row.get(field)) if field else None for field in (entry.slice, entry.group))
    return item(
        item_id=f"{entry.name}/{number}",
        task=entry.name,
        doc=row.fields,
        slice=slice_,
        group=group,
        **asked,
    )


def _words(entry: OwnTask, row: Row, answer: Any, module: Any) -> dict[str, Any]:
    asked = {"kind": "generate", "stop": entry.stop, "max_tokens": entry.max_tokens, "answer": answer}
    if hasattr(module, "score"):
        rules = {
            "metric": "score",
            "path": module.__file__,
            "sha256": module.sha256,
            "doc": sha256_of(row.fields),
        }
        return asked | {"check": "function", "rules": rules}
    check = entry.check
    if check is None:
        raise ConfigError(f"task '{entry.name}' has no check and {entry.function} no score; give one of them")
    return asked | {"check": check, "answer": _expected(row, check, answer)}


def _expected(row: Row, check: str, answer: Any) -> Any:
    """The answer as its check compares it."""
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        raise row.bad("answer", f"is empty, and check '{check}' compares with it; fill it in")
    try:
        if check == "json" and isinstance(answer, str):
            return json.loads(answer)
        if check == "number" and not math.isfinite(float(answer)):
            raise ValueError(f"{answer} is not finite")
        if check == "code" and not ast.parse(answer).body:
            raise ValueError("it holds no statement")
    except (ValueError, TypeError, SyntaxError, RecursionError) as error:
        raise row.bad("answer", f"{answer!r} does not fit check '{check}': {error}"[:300]) from None
    return answer


def _texts(row: Row, choices: Any) -> list[str]:
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            raise row.bad(
                "choices",
                f"{choices!r} is no list; write a JSON list in the row or a template for each choice",
            ) from None
    texts = Row(row.where, {"choices": choices}).texts("choices")
    if "" in (stripped := [text.strip() for text in texts]):
        raise row.bad("choices", f"number {stripped.index('')} is empty; each is a text")
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise row.bad("choices", f"{twice!r} is given twice; choices differ")
    return texts


def _place(row: Row, answer: Any, texts: list[str]) -> Any:
    """The place of the true choice, or of all true ones, from its text or place."""
    if isinstance(answer, list):
        return [_place(row, each, texts) for each in answer]
    if isinstance(answer, str) and answer in texts:
        return texts.index(answer)
    if isinstance(answer, str) and not answer.isdecimal():
        raise row.bad(
            "answer", f"{answer!r} is none of the choices {texts}; write it as there or its place from 0"
        )
    return Row(row.where, {"answer": answer}).place("answer", len(texts))


def _value(spec: str, row: Row, of: str) -> Any:
    """What a template renders, or without braces the field of that name."""
    return render(spec, row, of) if "{{" in spec or "{%" in spec else row.get(spec)


def render(template: str, row: Row, of: str) -> str:
    """Raises ``ConfigError`` for a wrong template and ``DataError`` for a field that the row lacks."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        return str(_compiled(template).render(row.fields))
    except TemplateSyntaxError as error:
        raise ConfigError(f"{of} is no template: {error}; fields stand in {{{{ }}}}") from None
    except TemplateError as error:
        has = ", ".join(map(str, row.fields))
        raise row.bad(of, f"the template fails: {error}; the row has {has}") from None


@cache
def _compiled(template: str) -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(template)


@cache
def load(path: str) -> Any:
    """The user's module at ``path``, run once a process; its ``sha256`` is of the file."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"function '{path}' does not exist; paths are relative to the manifest")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _run(spec.loader.exec_module, f"function '{path}'", module)
    if not callable(getattr(module, "item", None)):
        raise ConfigError(f"function '{path}' defines no item(row); it makes the prompt and answer of a row")
    module.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()  # type: ignore[attr-defined]
    return module


def own_score(rules: dict[str, Any], text: str, doc: dict[str, Any]) -> float:
    """The user's score of an answer. Raises ``DataError`` unless it is from 0 to 1 and by the same file."""
    module = load(rules["path"])
    if module.sha256 != rules["sha256"]:
        raise DataError(f"'{rules['path']}' has changed since the items were made; make them again")
    value = _run(module.score, f"score of '{rules['path']}'", text, doc)
    if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise DataError(f"score of '{rules['path']}' gave {value!r}; it is a number from 0 to 1")
    return float(value)


def _run(function: Any, what: str, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise DataError(f"{what} fails: {type(error).__name__}: {error}; try it on the row alone") from error
