"""Pairs to a reward model to a policy that it judges, in one manifest; a real engine draws the answers."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from largeforge_ray.data import read_rows
from largeforge_ray.models import detect
from largeforge_ray.store import Artifact, Store, open_store
from largeforge_ray.teach import read_teacher_rows
from tests.local_ray._chaos import Attempt, attempt, strike
from tests.local_ray.conftest import largeforge
from tests.local_ray.test_training import adapter
from tests.local_ray.test_training_faults import cluster_of
from tests.unit._tiny import text, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS, STRUCK_AT = 36, 12


@dataclass(frozen=True)
class Ran:
    """A finished run and the folder of its model."""

    home: Path
    tuned: Artifact
    run: Attempt
    seconds: float

    @property
    def store(self) -> Store:
        return open_store(self.run.store)


def capitals(answer: str) -> int:
    return sum(c.isupper() for c in answer)


def write_rows(home: Path, model: Path) -> None:
    """Pairs whose better answer is of words with a capital letter, and prompts that nothing but a reward
    model can judge. The words are the model's own tokens: what it says by chance is like them."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    words = [w for w in map(tokenizer.decode, range(3, len(tokenizer))) if w.isprintable() and w == w.strip()]
    rng = random.Random(5)

    def answer(capital: bool, least: int) -> str:
        like = [w for w in words if bool(capitals(w)) == capital]
        return "".join(rng.choice(like) for _ in range(rng.randint(least, 8)))

    pairs = [
        {"prompt": text(rng, 2 + i % 4), "chosen": answer(True, 4), "rejected": answer(False, 1)}
        for i in range(120)
    ]
    prompts = [{"prompt": text(rng, 2 + i % 5)} for i in range(40)]
    (home / "pairs.json").write_text(json.dumps(pairs))
    (home / "prompts.json").write_text(json.dumps(prompts))


def write_manifest(home: Path, folder: Path, *more: dict, **settings: object) -> Path:
    judged = {"name": "grpo", "reward_model": "judge", "group": 8, "max_new_tokens": 8}
    judge = {"algorithm": "reward", "data": "pairs", "learning_rate": 0.01, "epochs": 4}
    tuned = {
        "algorithm": judged,
        "data": "prompts",
        "lora": {"alpha": 32},
        "learning_rate": 0.02,
        "schedule": "constant",
        "batch_size": 4,
        "epochs": 4,
        "checkpoint_every": 5,
    }
    stages: list[dict] = [
        {"name": name, "kind": "dataset", "source": str(home / f"{name}.json"), "split": {"test": 0.2}}
        for name in ("pairs", "prompts")
    ]
    stages += [
        {"name": "judge", "kind": "train"} | judge,
        {"name": "tuned", "kind": "train"} | tuned | settings,
        *more,
    ]
    model = {"source": str(home / "tiny"), "max_model_len": 512}
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump({"name": "judged", "model": model, "stages": stages}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    home, folder = tmp_path_factory.mktemp("grpo"), tmp_path_factory.mktemp("one")
    write_rows(home, tiny_model(home, head_dim=32))
    began = time.monotonic()
    picked = {"name": "picked", "kind": "teach", "prompts": "prompts", "samples": 4}
    picked |= {"make": {"name": "preferences", "by": "reward", "reward_model": "judge"}}
    picked |= {"teacher": {"temperature": 1.0, "max_tokens": 8}}
    run = attempt(folder, write_manifest(home, folder, picked))
    tuned = finished(run)
    return Ran(home, tuned, run, time.monotonic() - began)


def finished(run: Attempt) -> Artifact:
    """The policy. On a busy machine an engine alone takes two minutes to start."""
    assert run.finish(600) == 0, run.log.read_text()
    return adapter(run)


def before_answers(ran: Ran, folder: Path) -> Path:
    """A store beside that of the run, which knows all but the last adapter; returns ``folder``."""
    store = shutil.copytree(ran.run.store, folder / "forge", ignore=shutil.ignore_patterns("runs"))
    shutil.rmtree(store / ran.tuned.location)
    return folder


def numbers(run: Attempt, name: str) -> list[float]:
    """A figure of every step of the policy."""
    return [e["numbers"][name] for e in run.events() if e["stage"] == "tuned" and name in e["numbers"]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_answers_come_to_be_what_the_pairs_prefer(ran: Ran) -> None:
    rewards, gaps = numbers(ran.run, "reward"), numbers(ran.run, "engine_gap")
    held = {when: figures["reward"] for when, figures in ran.tuned.metrics["held_out"].items()}
    first, last = mean(rewards[:5]), mean(rewards[-5:])
    print(f"reward of drawn answers {first:.2f} -> {last:.2f}, of the likeliest {held}, {ran.seconds:.0f} s")
    print(f"engine and trainer differ by {mean(gaps):.4f} a token, at most {max(gaps):.4f}")
    assert len(rewards) == STEPS
    assert last > first + 2
    assert held["after"] > held["before"] + 2
    assert max(gaps) < 0.1


def test_a_reward_model_picks_the_best_and_the_worst_of_a_prompt_s_answers(ran: Ran) -> None:
    folder = ran.store.fetch(ran.store.get("picked"))
    answers: dict[str, dict[str, float]] = {}
    for row in read_teacher_rows(folder):
        if text := row["text"].strip():  # of nothing, nothing is made
            answers.setdefault(row["messages"][-1]["content"], {})[text] = row["score"]
    pairs = list(read_rows(folder, "train"))
    sides = {side: [row[side][-1]["content"] for row in pairs] for side in ("chosen", "rejected")}
    letters = {side: mean([float(capitals(text)) for text in texts]) for side, texts in sides.items()}
    print(f"{len(pairs)} pairs, capital letters {letters}")
    assert len(pairs) > 20
    assert letters["chosen"] > letters["rejected"]
    for row, best, worst in zip(pairs, sides["chosen"], sides["rejected"], strict=True):
        scores = answers[row["messages"][-1]["content"]]
        assert scores[best] == max(scores.values()) > min(scores.values()) == scores[worst]


def test_the_adapter_prefers_them_wherever_it_is_loaded(ran: Ran) -> None:
    """Counted in the answers themselves, drawn by transformers and PEFT: no score that could be cheated."""
    import transformers
    from peft import PeftModel

    from largeforge_ray.train.rollout import Prompt, sample

    tokenizer = transformers.AutoTokenizer.from_pretrained(ran.home / "tiny")
    base = transformers.AutoModelForCausalLM.from_pretrained(ran.home / "tiny")
    chat = [{"role": "user", "content": "lantern to Vienna"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)

    def found() -> float:
        answers = sample(model, Prompt(ids, tuple(range(64))), 8, tokenizer.eos_token_id)
        return mean([capitals(tokenizer.decode(answer)) for answer in answers])

    model = PeftModel.from_pretrained(base, ran.store.fetch(ran.tuned)).eval()
    with model.disable_adapter():
        before = found()
    after = found()
    print(f"capital letters an answer {before:.2f} -> {after:.2f}")
    assert after > 2 * before


def test_an_adapter_leads_back_to_the_pairs_its_answers_were_judged_by(ran: Ran) -> None:
    judge, pairs = ran.store.get("judge"), ran.store.get("pairs")
    assert judge.key in ran.tuned.parents
    assert pairs.key in judge.parents
    told = largeforge("lineage", "tuned", cwd=ran.run.store.parent, timeout=60)
    assert told.code == 0, told.err
    for artifact in (ran.tuned, judge, pairs):
        assert f"{artifact.kind} {artifact.name} {artifact.key[:16]}" in told.out


def test_two_workers_learn_from_the_answers_that_one_does(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker asks the engine for the answers of both; later ones differ by the rounding of sums."""
    folder = before_answers(ran, tmp_path)
    began = time.monotonic()
    with cluster_of(monkeypatch, 3):
        run = attempt(folder, write_manifest(ran.home, folder, workers=2))
        tuned = finished(run)
    rewards, alone = numbers(run, "reward"), numbers(ran.run, "reward")
    print(f"first reward {rewards[0]} on two, {alone[0]} on one; {time.monotonic() - began:.0f} s")
    print(f"last five {mean(rewards[-5:]):.2f} on two, {mean(alone[-5:]):.2f} on one")
    assert "2 worker(s)" in run.log.read_text()
    assert rewards[0] == pytest.approx(alone[0], abs=0.05)
    assert mean(rewards[-5:]) > mean(rewards[:5]) + 2
    assert tuned.key == ran.tuned.key


@pytest.mark.parametrize("victim", ["driver", "ray::RayTrainWorker"])
def test_a_killed_policy_goes_on_from_its_checkpoint(victim: str, ran: Ran, tmp_path: Path) -> None:
    folder = before_answers(ran, tmp_path)
    manifest = write_manifest(ran.home, folder)
    run = attempt(folder, manifest)
    run.wait_for(lambda e: e["stage"] == "tuned" and e["numbers"].get("step", 0) >= STRUCK_AT)
    strike(run, victim)
    struck = time.monotonic()
    if victim == "driver":
        run = attempt(folder, manifest)
    run.wait_for(lambda e: "resumed at step" in e["message"])
    resumed = time.monotonic() - struck
    tuned = finished(run)
    print(f"{victim} killed: went on after {resumed:.0f} s, done after {time.monotonic() - struck:.0f} s")
    (step,) = re.findall(r"resumed at step (\d+)", run.log.read_text())
    assert 0 < int(step) <= STRUCK_AT + 1
    assert [at for at, _ in tuned.metrics["losses"]] == list(range(1, STEPS + 1))
    assert tuned.metrics["losses"] == ran.tuned.metrics["losses"]


def test_a_training_of_as_many_workers_as_cores_gets_the_core_of_the_engine(ran: Ran, tmp_path: Path) -> None:
    """One step of the policy starts the engine; the reward model of other settings comes after it."""
    folder = before_answers(ran, tmp_path)
    path = write_manifest(ran.home, folder, epochs=0.1)
    manifest = yaml.safe_load(path.read_text())
    cores = detect().cpus
    manifest["stages"].append(
        {"name": "other", "kind": "train", "algorithm": "reward", "data": "pairs", "workers": cores}
    )
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    run = attempt(folder, path)
    finished(run)
    assert f"{cores} worker(s)" in run.log.read_text()
    assert re.search(r"tuned +done.*other +done", run.log.read_text(), re.DOTALL)
