"""lm-eval as a library of definitions: the version that was read, and what is refused of its tasks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from largeforge_ray.errors import ConfigError
from largeforge_ray.evaluate import harness
from largeforge_ray.evaluate.tasks import LIBRARY
from tests.unit._eval_docs import index_of

CHOICE = {
    "task": "own",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["a", "b"],
    "doc_to_target": "{{y}}",
}
DOCS = {"test": [{"q": "Is it a?", "y": 0}, {"q": "Is it b?", "y": 1}]}


def test_the_version_that_was_read_is_installed() -> None:
    assert harness.installed() == harness.READ_IN_LM_EVAL, (
        "read lm_eval/api/task.py, lm_eval/tasks and lm_eval/filters again, then name the new version"
    )


def test_reading_definitions_says_nothing_and_importing_is_light() -> None:
    code = (
        "import sys, largeforge_ray.evaluate.tasks as t, largeforge_ray.evaluate.scoring as s\n"
        "assert not {'lm_eval', 'datasets', 'torch', 'jinja2', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mmlu", ("test", "dev")),
        ("hellaswag", ("validation", "train")),
        ("arc_easy", ("test", "train")),
        ("arc_challenge", ("test", "train")),
        ("truthfulqa_mc1", ("validation", None)),
        ("truthfulqa_mc2", ("validation", None)),
        ("truthfulqa_gen", ("validation", None)),
        ("gsm8k", ("test", "train")),
        ("humaneval", ("test", None)),
    ],
)
def test_splits_are_those_of_the_definition(name: str, expected: tuple[str, str | None]) -> None:
    config = harness.read_config(LIBRARY[name].config.format(subject="anatomy"), functions=False)
    assert harness.splits(config) == expected


def test_examples_of_a_fixed_prompt_cannot_be_changed() -> None:
    config = harness.read_config("truthfulqa/truthfulqa_mc1.yaml")
    assert harness.shots(config, None) == harness.shots(config, 0) == 0
    with pytest.raises(ConfigError, match="num_fewshot 3 of task 'truthfulqa_mc1', whose prompt is fixed"):
        harness.shots(config, 3)
    assert harness.shots(harness.read_config("gsm8k/gsm8k.yaml"), None) == 5


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_fewshot 2 of task 'own', and there are 1 examples to show"):
        harness.open_task(CHOICE | {"fewshot_split": "test"}, DOCS, num_fewshot=2)
    with pytest.raises(ConfigError, match="split 'train' has no document"):
        harness.open_task(CHOICE | {"training_split": "train"}, DOCS, num_fewshot=1)


def test_choices_carry_the_delimiter_that_their_length_leaves_out() -> None:
    task = harness.open_task(CHOICE, DOCS)
    plain = next(harness.ask(task, [1], chat=False))
    assert (plain.prompt, plain.choices, plain.delimiter, plain.target) == ("Is it b?", [" a", " b"], " ", 1)
    chat = next(harness.ask(task, [1], chat=True))
    assert chat.prompt == [{"role": "user", "content": "Is it b?"}]
    assert (chat.choices, chat.delimiter) == (["a", "b"], "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"output_type": "loglikelihood_rolling", "doc_to_choice": None},
            "'loglikelihood_rolling'; Supported",
        ),
        ({"doc_to_text": "{{y}}", "doc_to_target": "{{q}}"}, "choices in prompts of their own"),
        ({"metric_list": [{"metric": "acc_mutual_info"}]}, "choices in prompts of their own"),
        ({"unsafe_code": True}, "code runner"),
        ({"metric_list": [{"metric": "brier_score"}]}, "no metric that is a mean"),
    ],
)
def test_tasks_that_are_no_single_prompt_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        harness.check_supported(harness.open_task(CHOICE | change, DOCS))


def test_a_chat_cannot_begin_the_assistants_turn() -> None:
    task = harness.open_task(CHOICE | {"gen_prefix": "It is"}, DOCS)
    with pytest.raises(ConfigError, match="begins the assistant's turn with 'It is'; set chat: false"):
        next(harness.ask(task, [0], chat=True))


def test_any_other_task_is_found_by_its_name_and_a_wrong_one_gets_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "_index", lambda: index_of("arc", "winogrande", "squadv2", "mmlu/default"))
    assert harness.find("arc_challenge_chat") == {"arc_challenge_chat": "arc/arc_challenge_chat.yaml"}
    assert set(harness.find("ai2_arc")) == {"arc_easy", "arc_challenge"}
    assert len(harness.find("mmlu")) == 57
    with pytest.raises(
        ConfigError, match=r"lm-eval 0\.4\.\d+ has no task 'winogrand'; did you mean 'winogrande'"
    ):
        harness.find("winogrand")
    with pytest.raises(ConfigError, match="is a Python class"):
        harness.find("squadv2")


@pytest.mark.slow
def test_all_of_lm_evals_tasks_are_found() -> None:
    assert harness.find("winogrande") == {"winogrande": "winogrande/default.yaml"}
