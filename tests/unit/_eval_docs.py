"""A few documents of every published task in their published forms, and lm-eval itself to compare with."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

from largeforge_ray.config.tasks import LibraryTask
from largeforge_ray.evaluate import harness
from largeforge_ray.evaluate.tasks import LIBRARY, build

MMLU = [
    {
        "id": f"{subject}-{i}",
        "subject": subject,
        "question": f" What is {i} of {subject}? ",
        "choices": [f"{word} {i}" for word in ("one", "two", "three", "four")],
        "answer": i % 4,
    }
    for subject in ("anatomy", "virology")
    for i in range(6)
]
ARC = [
    {
        "id": f"Q_{i}",
        "question": {
            "stem": f"Which one is number {i}?",
            "choices": [
                {"text": text * (i + 1), "label": label}
                for text, label in zip(("a", "bcd", "ef", "ghij"), "1234" if i % 2 else "ABCD", strict=True)
            ],
        },
        "answerKey": "2" if i % 2 else "D",
    }
    for i in range(5)
]
HELLASWAG = [
    {
        "ind": i,
        "activity_label": "Roof shingle removal",
        "ctx_a": f"A man [{i}] is on a roof.",
        "ctx_b": "he" if i else "",
        "ctx": "unused",
        "split": "val",
        "split_type": "indomain",
        "label": i % 4,
        "endings": ["starts [step] pulling.", "is  holding.", "rips up level tiles [title] now.", "x"],
        "source_id": "activitynet~v_1",
    }
    for i in range(4)
]
TRUTHFULQA = [
    {
        "Type": "Adversarial",
        "Category": "Misconceptions",
        "Question": "Why do veins appear blue?",
        "Best Answer": "Because of how light penetrates, mostly",
        "Correct Answers": "Because of how light penetrates, mostly; It is an illusion.; Light",
        "Incorrect Answers": "The blood is blue; There is no oxygen",
        "Source": "https://example.org",
    },
    {
        "Type": "Non-Adversarial",
        "Category": "Proverbs",
        "Question": "Does the early bird\ncatch the worm?",
        "Best Answer": "Not always",
        "Correct Answers": "Not always; I have no comment",
        "Incorrect Answers": "Yes; Always",
        "Source": "https://example.org",
    },
]
GSM8K = [
    {"question": f"Tom has {i} eggs and buys 1,000. How many?", "answer": f"He has {i} + 1000.\n#### 1,00{i}"}
    for i in range(9)
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": "from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    ''' Sum. '''\n",
        "entry_point": "total",
        "canonical_solution": "    return sum(numbers)\n",
        "test": "\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0",
    }
]
SOURCES = {
    "mmlu": "mmlu",
    "hellaswag": "hellaswag",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "truthfulqa_mc1": "truthfulqa",
    "truthfulqa_mc2": "truthfulqa",
    "truthfulqa_gen": "truthfulqa",
    "gsm8k": "gsm8k",
    "humaneval": "humaneval",
}


def hub_arc() -> list[dict[str, Any]]:
    return [
        {
            "id": row["id"],
            "question": row["question"]["stem"],
            "choices": {key: [c[key] for c in row["question"]["choices"]] for key in ("text", "label")},
            "answerKey": row["answerKey"],
        }
        for row in ARC
    ]


def jsonl(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_documents(folder: Path) -> None:
    """Every task's documents under the names they are published by."""
    jsonl(folder / "mmlu/test.jsonl", MMLU)
    jsonl(folder / "mmlu/dev.jsonl", [row | {"question": f"dev {row['question']}"} for row in MMLU])
    for name, rows in {"Test": ARC, "Train": [row | {"id": "t"} for row in ARC]}.items():
        jsonl(folder / f"arc/ARC-Easy-{name}.jsonl", rows)
    jsonl(folder / "hellaswag/hellaswag_val.jsonl", HELLASWAG)
    jsonl(folder / "gsm8k/test.jsonl", GSM8K[:2])
    jsonl(folder / "gsm8k/train.jsonl", GSM8K[2:])
    (folder / "truthfulqa").mkdir()
    with (folder / "truthfulqa/TruthfulQA.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(TRUTHFULQA[0]))
        writer.writeheader()
        writer.writerows(TRUTHFULQA)
    (folder / "humaneval").mkdir()
    with gzip.open(folder / "humaneval/HumanEval.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in HUMANEVAL)


def index_of(*folders: str) -> dict[str, Any]:
    """lm-eval's own index of some of its folders; that of all of them takes it many seconds."""
    from lm_eval.tasks._index import TaskIndex

    return TaskIndex.build([harness.tasks_folder() / folder for folder in folders])


def items_of(name: str, folder: Path, **options: Any) -> list[dict[str, Any]]:
    return build(LibraryTask(name=name, source=SOURCES[name], **options), folder).items


def lm_eval_task(
    name: str, docs: dict[str, list[dict[str, Any]]], num_fewshot: int = 0, **changed: Any
) -> Any:
    """lm-eval's own task over a real ``datasets.Dataset``, made without our code."""
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    path = harness.tasks_folder() / LIBRARY[name].config.format(subject="anatomy")
    config = load_yaml(path, resolve_func=name != "humaneval") | changed
    for key in ("tag", "group"):
        config.pop(key, None)
    for kind in ("training_split", "validation_split", "fewshot_split"):
        if config.get(kind) not in docs:
            config[kind] = None
    local = {split: datasets.Dataset.from_list(rows) for split, rows in docs.items()}
    task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: local})
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(1234)
    return task
