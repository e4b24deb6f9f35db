"""A dataset as token ids: made once in parallel, read by every worker a row at a time.

``<part>.arrow`` holds a record batch per ``ROWS_PER_TASK`` rows; readers map it into memory.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from largeforge_ray.data.chat import IGNORED, render_chat, render_prompt
from largeforge_ray.data.rows import HIDDEN, NUMBERS, SIGNALS, read_rows
from largeforge_ray.errors import DataError
from largeforge_ray.store import local_folder
from largeforge_ray.train.algorithms import objective_for
from largeforge_ray.train.batch import Encoded
from largeforge_ray.train.template import use_training_template

ROWS_PER_TASK = {None: 2000, "topk": 200, "hidden": 20}
"""By what is kept of a teacher: some hundred times the bytes of others, and some thousand times."""
TASKS_IN_FLIGHT = 8
TASK = ("messages", "check", "answer")
"""What an answer to a prompt is judged by."""
TAUGHT = {None: (), "topk": SIGNALS[1:], "hidden": (HIDDEN,)}
"""What is known of the teacher at the learned tokens, as ``data.rows`` has it, by the option that kept it."""


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """What decides the token ids. ``model_dir`` is an address, ``algorithm`` a configuration."""

    model_dir: str
    algorithm: Any
    max_tokens: int


def _schema(taught: str | None = None) -> Any:
    import pyarrow as pa

    columns = [
        ("row", pa.int64()),
        ("ids", pa.list_(pa.list_(pa.int32()))),
        ("learn", pa.list_(pa.list_(pa.bool_()))),
        ("label", pa.bool_()),
        ("task", pa.string()),
        ("lengths", pa.list_(pa.int32())),
        ("learned", pa.list_(pa.int32())),
    ]
    signals = [(n, pa.list_(pa.int32() if n == "topk_ids" else pa.float16())) for n in TAUGHT[taught]]
    return pa.schema(columns + signals)


def encode_rows(rows: Sequence[dict[str, Any]], first: int, spec: TokenSpec) -> tuple[Any, list[int]]:
    """A record batch of the rows that fit, and the numbers of those that do not; ``first`` is row 0's number.

    Raises ``DataError`` naming the row for one the algorithm cannot learn from.
    """
    import pyarrow as pa
    import transformers

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(local_folder(spec.model_dir))
    prompts = spec.algorithm.form == "prompt"
    if not prompts and not spec.algorithm.taught:  # a prompt reads as the engine is asked
        use_training_template(tokenizer)
    objective = objective_for(spec.algorithm)

    def render(turns: Sequence[dict[str, str]], since: int) -> Encoded | None:
        if since == len(turns):
            ids = render_prompt(tokenizer, turns, max_tokens=spec.max_tokens)
            return Encoded(ids, [False] * len(ids)) if ids else None
        made = render_chat(tokenizer, turns, max_tokens=spec.max_tokens, learn_from=since)
        return Encoded(made["input_ids"], [x != IGNORED for x in made["labels"]]) if made else None

    encoded, left_out = [], []
    for i, row in enumerate(rows):
        number = first + i
        try:
            sequences = objective.sequences(row, rows[(i + 1) % len(rows)], render)
        except DataError as error:
            raise DataError(f"row {number} (id {row['item_id']}): {error}") from None
        whole = [s for s in sequences if s is not None and len(s.ids) <= spec.max_tokens]
        if len(whole) < len(sequences):
            left_out.append(number)
            continue
        encoded.append(
            {
                "row": number,
                "ids": [s.ids for s in whole],
                "learn": [s.learn for s in whole],
                "label": row["label"],
                "task": json.dumps({f: row[f] for f in TASK}) if prompts else None,
                "lengths": [len(s.ids) for s in whole],
                "learned": [sum(s.learn[1:]) for s in whole],
                **{name: row.get(name) for name in TAUGHT[spec.algorithm.taught]},
            }
        )
    return pa.RecordBatch.from_pylist(encoded, schema=_schema(spec.algorithm.taught)), left_out


def write_tokens(dataset: Path, part: str, spec: TokenSpec, folder: Path, name: str) -> dict[str, Any]:
    """Encode a part of a dataset with Ray tasks into ``<name>.arrow``.

    Returns rows, tokens, learned tokens, rows left_out and the first numbers of those.

    Raises ``DataError`` if every row is longer than ``max_tokens``.
    """
    import pyarrow as pa
    import ray

    # The workers that wait for these tokens, or another run's, may hold every CPU.
    encode = ray.remote(encode_rows).options(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")
    cpus = int(cast(Any, ray).cluster_resources().get("CPU", 1))
    most = max(1, min(cpus, TASKS_IN_FLIGHT))
    rows = tokens = learned = 0
    left_out: list[int] = []
    schema, blocks = _schema(spec.algorithm.taught), _blocks(dataset, part, spec.algorithm.taught)
    with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        # In order, so that a row's place does not depend on which task was faster.
        for task in _ahead((encode.remote(block, first, spec) for first, block in blocks), most):
            batch, too_long = ray.get(task)
            file.write_batch(batch)
            rows += batch.num_rows
            tokens += sum(map(sum, batch.column("lengths").to_pylist()))
            learned += sum(map(sum, batch.column("learned").to_pylist()))
            left_out += too_long
    if rows == 0:
        raise DataError(
            f"all {len(left_out)} rows are longer than max_tokens {spec.max_tokens}; "
            "raise max_tokens or shorten the rows"
        )
    return {
        "rows": rows,
        "tokens": tokens,
        "learned": learned,
        "left_out": len(left_out),
        "first": left_out[:5],
    }


def _blocks(dataset: Path, part: str, taught: str | None) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    rows, first = read_rows(dataset, part, numbers=("token_ids", *TAUGHT[taught]) if taught else ()), 0
    while block := list(itertools.islice(rows, ROWS_PER_TASK[taught])):
        yield first, block
        first += len(block)


def _ahead(tasks: Iterator[Any], most: int) -> Iterator[Any]:
    """Keep some tasks running before the one that is waited for; never all of them."""
    running: list[Any] = list(itertools.islice(tasks, most))
    while running:
        yield running.pop(0)
        running += itertools.islice(tasks, 1)


def in_memory(sequences: Sequence[Encoded]) -> Any:
    """Rows of one sequence each, as ``TokenTable`` takes them."""
    import pyarrow as pa

    rows = [
        {"ids": [s.ids], "learn": [s.learn], "lengths": [len(s.ids)], "learned": [sum(s.learn[1:])]}
        for s in sequences
    ]
    return pa.Table.from_pylist(rows, schema=_schema())


class TokenTable:
    """Encoded rows, on disk or in a table. Lengths are held in memory, ids on disk are not."""

    def __init__(self, source: Any) -> None:
        import pyarrow as pa

        on_disk = isinstance(source, Path)
        self._table = pa.ipc.open_file(pa.memory_map(str(source))).read_all() if on_disk else source

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, i: int) -> list[Encoded]:
        """All sequences of a row."""
        ids, learn = self._table["ids"][i].as_py(), self._table["learn"][i].as_py()
        return [Encoded(a, b) for a, b in zip(ids, learn, strict=True)]

    def label(self, i: int) -> bool | None:
        value = self._table["label"][i].as_py()
        return None if value is None else bool(value)

    def task(self, i: int) -> dict[str, Any]:
        """What an answer to a prompt is judged by: ``messages``, ``check`` and ``answer``."""
        task: dict[str, Any] = json.loads(self._table["task"][i].as_py())
        return task

    def signals(self, rows: Sequence[int], device: Any) -> Any:
        """What is known of the learned tokens of ``rows``: the columns of ``TAUGHT``, each end to end."""
        import numpy as np
        import torch

        def joined(name: str) -> Any:
            cells = [self._table[name][r].values.to_numpy() for r in rows]
            return torch.from_numpy(np.concatenate(cells)).to(device)

        return {n: joined(n) for n in self._table.column_names if n in NUMBERS}

    @cached_property
    def lengths(self) -> Any:
        """Tokens, ``(rows, sequences)``."""
        return self._matrix("lengths")

    @cached_property
    def learned(self) -> Any:
        """Learned tokens, ``(rows, sequences)``."""
        return self._matrix("learned")

    def _matrix(self, column: str) -> Any:
        flat = self._table[column].combine_chunks().flatten().to_numpy()
        return flat.reshape(len(self), -1)
