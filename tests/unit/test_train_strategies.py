"""However weights are divided among two workers, they learn what one does, and go on from its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit._tiny import make_rows, stage_of, table_of, tiny_model
from tests.unit._workers import STEPS, run_workers

FORMS = {"sft": "chat", "dpo": "preference", "distill": "taught"}
STRATEGIES = ["ddp", "zero1", "zero2", "zero3", "fsdp2"]
TRAINED = {
    "adapter": {"algorithm": "dpo", "lora": {"rank": 3, "alpha": 6}},
    "whole": {"algorithm": "sft", "lora": None},
    "distilled": {"algorithm": "distill", "lora": {"rank": 3, "alpha": 6}},
}
PATHS = [("ddp", "zero2"), ("fsdp2", "zero3"), ("zero3", "ddp"), ("zero2", "fsdp2")]

Made = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strategies")


def case(folder: Path, model: Path, **settings: Any) -> dict[Path, dict[str, Any]]:
    """A folder with rows. 11 rows at 5 a step and 120 tokens a pass: workers have unequally many passes."""
    folder.mkdir(parents=True, exist_ok=True)
    form = FORMS[settings["algorithm"]]
    for part, number in (("train", 11), ("test", 3)):
        table_of(model, stage_of(settings["algorithm"]), make_rows(form, number), folder / f"{part}.arrow")
    return {folder: {"tokens_per_pass": 120} | settings}


@pytest.fixture(scope="module")
def one_worker(model: Path, home: Path) -> dict[str, Made]:
    cases: dict[Path, dict[str, Any]] = {}
    for name, settings in TRAINED.items():
        cases |= case(home / "one" / name, model, **settings)
        cases |= case(home / "one" / f"{name} recomputed", model, recompute=True, **settings)
    cases |= case(home / "one" / "whole dpo", model, algorithm="dpo", lora=None)
    return {folder.name: made for folder, made in zip(cases, run_workers(1, model, cases), strict=True)}


@pytest.fixture(scope="module")
def two_workers(model: Path, home: Path) -> dict[tuple[str, str], Made]:
    """Every strategy in the same two processes, and then each from another's checkpoint."""
    cases: dict[Path, dict[str, Any]] = {}
    for strategy in STRATEGIES:
        for name, settings in TRAINED.items():
            cases |= case(home / "two" / strategy / name, model, strategy=strategy, **settings)
    made = run_workers(2, model, cases)
    found = {(f.parent.name, f.name): m for f, m in zip(cases, made, strict=True)}
    onward: dict[Path, dict[str, Any]] = {}
    for first, then in PATHS:
        folder = home / "onward" / first / then
        onward |= case(folder, model, strategy=then, **TRAINED["adapter"])
        shutil.copytree(home / "two" / first / "adapter" / "made", folder / "kept")
    made = run_workers(2, model, onward)
    return found | {(f.parent.name, f.name): m for f, m in zip(onward, made, strict=True)}


def losses(made: Made) -> list[float]:
    return [loss for _, loss in made["losses"]]


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_workers_learn_what_one_does(
    strategy: str, trained: str, one_worker: dict[str, Made], two_workers: dict[tuple[str, str], Made]
) -> None:
    one, two = one_worker[trained], two_workers[strategy, trained]
    assert losses(one)[-1] < losses(one)[0]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert two["norm"] == pytest.approx(one["norm"], rel=1e-3)
    assert two["held_out"]["after"]["loss"] == pytest.approx(one["held_out"]["after"]["loss"], rel=1e-3)


@pytest.mark.parametrize(("first", "then"), PATHS)
def test_a_run_goes_on_with_another_strategy_from_the_same_checkpoint(
    first: str, then: str, model: Path, home: Path, two_workers: dict[tuple[str, str], Made]
) -> None:
    went_on = two_workers[first, then]
    assert len(losses(went_on)) == 2 * STEPS
    folder = home / "unbroken" / first / then
    alone = case(folder, model, **TRAINED["adapter"])
    shutil.copytree(home / "one" / "adapter" / "made", folder / "kept")
    assert losses(went_on) == pytest.approx(losses(run_workers(1, model, alone)[0]), rel=1e-3)


def test_a_whole_model_is_written_as_transformers_reads_it(
    model: Path, home: Path, one_worker: dict[str, Made], two_workers: dict[tuple[str, str], Made]
) -> None:
    """Divided or not, the same weights come out, with the base's tokenizer beside them."""
    import torch
    import transformers

    ids = torch.arange(5, 25)[None]

    def logits(folder: Path) -> Any:
        transformers.AutoTokenizer.from_pretrained(folder)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
        assert type(loaded).__name__ == "LlamaForCausalLM"
        with torch.no_grad():
            return loaded(input_ids=ids).logits

    one = logits(home / "one" / "whole" / "made" / "product")
    assert not torch.allclose(logits(model), one, atol=1e-2)
    for strategy in STRATEGIES:
        divided = logits(home / "two" / strategy / "whole" / "made" / "product")
        assert torch.allclose(one, divided, atol=2e-3), strategy


@pytest.mark.parametrize("trained", TRAINED)
def test_recomputed_activations_give_the_same_losses(trained: str, one_worker: dict[str, Made]) -> None:
    assert losses(one_worker[f"{trained} recomputed"]) == pytest.approx(losses(one_worker[trained]), rel=1e-6)


def test_a_whole_model_compares_with_what_it_was_before_the_first_step(one_worker: dict[str, Made]) -> None:
    made = one_worker["whole dpo"]
    assert losses(made)[0] == pytest.approx(0.6931, abs=1e-4)
    assert abs(made["held_out"]["after"]["loss"] - 0.6931) > 1e-3
