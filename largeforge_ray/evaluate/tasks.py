"""Task entries of a manifest to items: published tasks as lm-eval asks them, and the user's own.

built = build(LibraryTask(name="mmlu", source="mmlu", limit=200), folder)
built.items         # every document as an item, for write_items
built.duplicates    # documents left out because an earlier one asks the same
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.config.tasks import HARNESS, LibraryTask, OwnTask
from largeforge_ray.errors import ConfigError, DataError
from largeforge_ray.evaluate import formats, harness
from largeforge_ray.evaluate.formats import Row
from largeforge_ray.evaluate.items import item, sha256_of
from largeforge_ray.evaluate.owntask import own_items


@dataclass(frozen=True, slots=True)
class Built:
    """The items of a task, each hash once, and how many documents asked the same as an earlier one."""

    items: list[dict[str, Any]]
    duplicates: int


@dataclass(frozen=True, slots=True)
class Known:
    """A task of the library: its definition in lm-eval, its documents' reader and its primary metric.

    A definition with ``{subject}`` is one of many, told apart by that field of the documents. ``answer``
    makes the answer from a document in the place of lm-eval's target.
    """

    config: str
    reshape: Callable[[Row], dict[str, Any]]
    metric: str
    needs: str | None = None
    slice: str | None = None
    answer: Callable[[dict[str, Any]], Any] | None = None


def _true_ones(doc: dict[str, Any]) -> list[int]:
    return [place for place, label in enumerate(doc["mc2_targets"]["labels"]) if label == 1]


def _arc(task: str) -> Known:
    return Known(f"arc/{task}.yaml", formats.arc, "acc_norm")


def _truthfulqa(
    part: str, metric: str, needs: str, answer: Callable[[dict[str, Any]], Any] | None = None
) -> Known:
    return Known(f"truthfulqa/truthfulqa_{part}.yaml", formats.truthfulqa, metric, needs, "category", answer)


LIBRARY: dict[str, Known] = {
    "mmlu": Known("mmlu/default/mmlu_{subject}.yaml", formats.mmlu, "acc", slice="subject"),
    "hellaswag": Known("hellaswag/hellaswag.yaml", formats.hellaswag, "acc_norm"),
    "arc_easy": _arc("arc_easy"),
    "arc_challenge": _arc("arc_challenge"),
    "truthfulqa_mc1": _truthfulqa("mc1", "acc", "mc1_targets"),
    "truthfulqa_mc2": _truthfulqa("mc2", "mc2", "mc2_targets", _true_ones),
    "truthfulqa_gen": _truthfulqa("gen", "bleu_acc", "correct_answers"),
    "gsm8k": Known("gsm8k/gsm8k.yaml", formats.gsm8k, "exact_match,flexible-extract"),
    "humaneval": Known("humaneval/humaneval.yaml", formats.humaneval, "pass@1"),
}

JUDGED_HERE: dict[str, dict[str, Any]] = {
    "truthfulqa_mc2": {"process_results": None},
    "humaneval": {"metric_list": None, "filter_list": None},
}
"""What is left out of a definition because importing it costs seconds, or fetches a code runner."""


def build(entry: LibraryTask | OwnTask, folder: Path) -> Built:
    """The items of a task; paths are relative to ``folder``.

    Raises ``ConfigError`` or ``DataError``, naming file, line and field, before anything is asked.
    """
    made = own_items(entry, folder) if isinstance(entry, OwnTask) else _library_items(entry, folder)
    unique: dict[str, dict[str, Any]] = {}
    count = 0
    for each in made:
        count += 1
        unique.setdefault(each["item_hash"], each)
    return Built(list(unique.values()), count - len(unique))


@dataclass(frozen=True, slots=True)
class _Part:
    """One of lm-eval's tasks within a task: ``name`` is None if it is the only one."""

    path: str
    config: Mapping[str, Any]
    name: str | None
    task: Any


def _library_items(entry: LibraryTask, folder: Path) -> Iterator[dict[str, Any]]:
    known = LIBRARY.get(entry.name)
    parts = list(_parts(entry, known, folder))
    sizes = [len(part.task.task_docs) for part in parts]
    for part, places in zip(parts, spread(sizes, entry.limit), strict=True):
        for place, asked in zip(places, harness.ask(part.task, places, chat=entry.chat), strict=True):
            yield _item(entry, known, part, place, asked)


def spread(sizes: Sequence[int], limit: int | None) -> list[list[int]]:
    """Which places of each part make ``limit`` in all: of one part the first, of several every k-th."""
    total = sum(sizes)
    count = total if limit is None else min(limit, total)
    chosen = iter(range(count) if len(sizes) == 1 else (i * total // count for i in range(count)))
    places: list[list[int]] = []
    begin, following = 0, next(chosen, None)
    for size in sizes:
        places.append([])
        while following is not None and following < begin + size:
            places[-1].append(following - begin)
            following = next(chosen, None)
        begin += size
    return places


def _parts(entry: LibraryTask, known: Known | None, folder: Path) -> Iterator[_Part]:
    if known is None:
        found = harness.find(entry.name.removeprefix(HARNESS))
        for name, path in found.items():
            part = _part(entry, path, harness.read_config(path), name if len(found) > 1 else None, folder)
            harness.check_supported(part.task)
            yield part
    elif "{subject}" in known.config:
        yield from _subjects(entry, known, folder)
    else:
        yield _part(entry, known.config, _config(entry), None, folder)


def _config(entry: LibraryTask) -> Mapping[str, Any]:
    path = LIBRARY[entry.name].config
    if entry.name not in JUDGED_HERE:
        return harness.read_config(path)
    plain = harness.read_config(path, functions=False) | JUDGED_HERE[entry.name]
    if entry.name == "humaneval" and entry.chat:
        # A chat is told to complete the function, and its reply begins with what stops a completion.
        told = harness.read_config("humaneval/humaneval_instruct.yaml", functions=False)["doc_to_text"]
        plain |= {"doc_to_text": told, "generation_kwargs": plain["generation_kwargs"] | {"until": []}}
    return plain


def _part(entry: LibraryTask, path: str, config: Mapping[str, Any], name: str | None, folder: Path) -> _Part:
    documents = _documents(entry, config, folder)
    return _Part(path, config, name, _open(entry, config, documents))


def _open(
    entry: LibraryTask, config: Mapping[str, Any], documents: Mapping[str, list[dict[str, Any]]] | None
) -> Any:
    shots = harness.shots(config, entry.num_fewshot)
    return harness.open_task(config, documents, num_fewshot=shots, seed=entry.seed)


def _subjects(entry: LibraryTask, known: Known, folder: Path) -> Iterator[_Part]:
    pattern = known.config.format(subject="*")
    before, after = Path(pattern).name.split("*")
    paths = sorted(harness.tasks_folder().glob(pattern))
    subjects = [path.name.removeprefix(before).removesuffix(after) for path in paths]
    documents = _documents(
        entry, harness.read_config(known.config.format(subject=subjects[0])), folder, subjects
    )
    by_subject: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for split, docs in (documents or {}).items():
        for doc in docs:
            by_subject.setdefault(doc["subject"], {}).setdefault(split, []).append(doc)
    evaluated, _ = harness.splits(harness.read_config(known.config.format(subject=subjects[0])))
    for subject in subjects if documents is None else by_subject:
        path = known.config.format(subject=subject)
        config = harness.read_config(path)
        own = None if documents is None else by_subject[subject]
        if own is None or evaluated in own:
            yield _Part(path, config, subject, _open(entry, config, own))


def _documents(
    entry: LibraryTask, config: Mapping[str, Any], folder: Path, subjects: Iterable[str] | None = None
) -> dict[str, list[dict[str, Any]]] | None:
    """Split -> documents of ``source``: what is evaluated, and what examples come from if any are shown."""
    if entry.source is None:
        return None
    source = folder / entry.source
    if not source.exists():
        raise ConfigError(
            f"source '{source}' of task '{entry.name}' does not exist; paths are relative to the manifest"
        )
    evaluated, examples = harness.splits(config)
    found: dict[str, list[dict[str, Any]]] = {}
    for split in (evaluated, examples) if harness.shots(config, entry.num_fewshot) else (evaluated,):
        if split is None:
            continue
        file = formats.split_file(source, split, evaluated=split == evaluated)
        if file is None:
            less = "" if split == evaluated else " or set num_fewshot: 0"
            raise ConfigError(
                f"source '{source}' has no file of split '{split}', which task '{entry.name}' needs; add "
                f"{split}.jsonl{less}"
            )
        found[split] = [_document(entry, row, subjects) for row in formats.read(file)]
    return found


def _document(entry: LibraryTask, row: Row, subjects: Iterable[str] | None) -> dict[str, Any]:
    known = LIBRARY.get(entry.name)
    doc = known.reshape(row) if known else formats.as_it_is(row)
    if known and known.needs and known.needs not in doc:
        raise row.bad(known.needs, "is missing; give TruthfulQA.csv as published or the hub's fields")
    if subjects is not None and doc["subject"] not in subjects:
        near = difflib.get_close_matches(doc["subject"], list(subjects), n=1)
        raise row.bad(
            "subject",
            f"'{doc['subject']}' is no subject of {entry.name}"
            + (f"; did you mean '{near[0]}'?" if near else "; rename it"),
        )
    return doc | ({entry.group: row.get(entry.group)} if entry.group else {})


def _item(
    entry: LibraryTask, known: Known | None, part: _Part, place: int, asked: harness.Asked
) -> dict[str, Any]:
    doc = asked.doc
    if entry.group and entry.group not in doc:
        raise DataError(
            f"document {place} of task '{entry.name}' has no field '{entry.group}' for group; it has "
            f"{', '.join(doc)}"
        )
    metric = known.metric if known else harness.metrics(part.task)[0]
    rules: dict[str, Any] = {"metric": metric}
    answer, check = asked.target, "harness"
    if entry.name == "humaneval":
        check, rules["prefix"] = "code", doc["prompt"]
    elif asked.choices is not None and (known or harness.is_plain(part.task)):
        check, rules["delimiter"] = "choice", asked.delimiter
        answer = known.answer(doc) if known and known.answer else _place(asked)
    else:
        rules |= {"config": part.path, "doc": sha256_of(doc)}
    said: dict[str, Any] = {"messages": asked.prompt} if entry.chat else {"context": asked.prompt}
    words: dict[str, Any] = (
        {} if asked.choices is not None else {"stop": asked.stop, "max_tokens": asked.max_tokens}
    )
    name = entry.name.removeprefix(HARNESS)
    slice_ = part.name or (doc.get(known.slice) if known and known.slice else None)
    return item(
        item_id="/".join(filter(None, (name, part.name, str(place)))),
        task=entry.name,
        kind="generate" if asked.choices is None else "choice",
        check=check,
        choices=asked.choices,
        answer=answer,
        rules=rules,
        slice=slice_,
        group=str(doc[entry.group]) if entry.group else None,
        doc=doc,
        **said,
        **words,
    )


def _place(asked: harness.Asked) -> Any:
    """The place of a target that is a choice's text."""
    if not isinstance(asked.target, str):
        return asked.target
    texts = [choice.removeprefix(asked.delimiter) for choice in asked.choices or ()]
    return texts.index(asked.target) if asked.target in texts else asked.target
