"""Embeddings: a model stage that a router names answers an endpoint of its own, and is never routed to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from largeforge_ray.config import parse_manifest
from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.errors import ConfigError, ModelError
from largeforge_ray.flow import make_plan
from largeforge_ray.models.embedder import longest_text
from largeforge_ray.models.hardware import Hardware, engine_args
from largeforge_ray.models.source import locate, materialise
from largeforge_ray.routing import parse_router
from largeforge_ray.routing.experts import model_groups
from largeforge_ray.store import open_store
from serve_apps.chat_request import MAX_TEXTS, parse_request
from serve_apps.openai_errors import ApiError, ReplyHead
from serve_apps.router import Front
from tests.unit._bert import tiny_bert
from tests.unit._front import CHAT, HELLO, LIMITS, ScriptedEngine, told
from tests.unit.test_router_stage import FROM_OUTCOMES, START, home, run  # noqa: F401
from tests.unit.test_routing import ADAPTER, MODEL, expert, router

EMBED = "/v1/embeddings"
ENCODER = "d" * 64
EMBEDDER = {
    "name": "minilm",
    "state": "live",
    "model_key": ENCODER,
    "engine": {"max_model_len": 256},
    "embeds": True,
}
VECTORS = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]}
ASK = {"model": "auto", "input": "Some text."}


def application(*more: dict[str, Any]) -> tuple[TestClient, ScriptedEngine, ScriptedEngine]:
    writes = ScriptedEngine(ReplyHead(200), b'{"choices": []}')
    embeds = ScriptedEngine(ReplyHead(200), json.dumps(VECTORS).encode())
    table = parse_router(router(expert("base"), expert("tuned", ADAPTER, {"text": 1.0}), *more))
    return TestClient(Front(table, {MODEL: writes, ENCODER: embeds}, LIMITS)), writes, embeds


@pytest.mark.parametrize("name", ["auto", "minilm"])
def test_the_expert_that_embeds_answers_for_itself_and_for_auto(name: str) -> None:
    http, writes, embeds = application(EMBEDDER)
    reply = http.post(EMBED, json=ASK | {"model": name})
    assert (reply.status_code, reply.json()) == (200, VECTORS)
    assert reply.headers["x-largeforge-expert"] == "minilm"
    assert reply.headers["x-largeforge-artifact"] == ENCODER[:16]
    assert json.loads(reply.headers["x-largeforge-decision"])["chosen"] == "minilm"
    assert embeds.asked == [("minilm", ASK | {"model": name})]
    assert writes.asked == []


def test_nobody_is_routed_to_it_and_who_names_it_for_a_chat_is_told_whom_to_ask() -> None:
    http, writes, embeds = application(EMBEDDER)
    for text in ("Some text.", "minilm", "embed this"):
        asked = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        assert http.post(CHAT, json=asked).headers["x-largeforge-expert"] in ("base", "tuned")
    error = told(http.post(CHAT, json=HELLO | {"model": "minilm"}), 404, "model_not_found")
    assert "'minilm' is none of this endpoint's; use one of: auto, " in error["message"]
    assert "minilm," not in error["message"].partition("use one of")[2]
    assert embeds.asked == []
    assert len(writes.asked) == 3


def test_who_asks_another_for_vectors_is_told_who_has_them() -> None:
    http, writes, _ = application(EMBEDDER)
    error = told(http.post(EMBED, json=ASK | {"model": "tuned"}), 404, "model_not_found")
    assert error["message"] == "model 'tuned' is none of this endpoint's; use one of: auto, minilm"
    alone, *_ = application()
    error = told(alone.post(EMBED, json=ASK), 404, "model_not_found")
    assert "no model here makes embeddings; name one as embedder" in error["message"]
    assert writes.asked == []


def test_it_is_among_the_models_and_the_experts_and_counts_for_readiness() -> None:
    http, _, embeds = application(EMBEDDER)
    cards = {card["id"]: card.get("embeds") for card in http.get("/v1/models").json()["data"]}
    assert cards == {
        "auto": None,
        "largeforge/keyword": None,
        "largeforge/cascade": None,
        "base": False,
        "tuned": False,
        "minilm": True,
    }
    assert [e["embeds"] for e in http.get("/v1/experts").json()["data"]] == [False, False, True]
    embeds.up = False
    assert http.get("/health").json()["status"] == "degraded"
    assert http.get("/ready").status_code == 503


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"input": None}, "input", "must be text that is not empty"),
        ({"input": ""}, "input", "must be text that is not empty"),
        ({"input": ["a", ""]}, "input", "or a list of such texts"),
        ({"input": [1, 2, 3]}, "input", "ids of tokens are not taken"),
        ({"input": [[1, 2]]}, "input", "ids of tokens are not taken"),
        ({"input": []}, "input", f"0 texts, outside 1..{MAX_TEXTS}"),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, "input", f"{MAX_TEXTS + 1} texts, outside 1..{MAX_TEXTS}"),
        ({"encoding_format": "bytes"}, "encoding_format", "must be float or base64"),
        ({"dimensions": 0}, "dimensions", "0 is outside 1..65536"),
        ({"dimensions": "8"}, "dimensions", "must be a whole number"),
        ({"messages": []}, "messages", "messages is no field of /v1/embeddings; there are: model, input, "),
        ({"truncate_prompt_tokens": 4}, "truncate_prompt_tokens", "truncate_prompt_tokens is not accepted"),
        ({"stream": True}, "stream", "stream is no field"),
        ({"model": ["auto"]}, "model", "must be a string"),
    ],
)
def test_a_refusal_names_the_field_and_the_rule(more: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(ApiError, match=r".") as caught:
        parse_request(json.dumps(ASK | more).encode(), "application/json", EMBED, max_tokens=8)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert said in caught.value.message


@pytest.mark.parametrize(
    "more", [{}, {"input": ["a", "b"]}, {"encoding_format": "base64", "dimensions": 8, "user": "u"}]
)
def test_what_openai_allows_passes_unchanged(more: dict[str, Any]) -> None:
    body = json.dumps(ASK | more).encode()
    assert parse_request(body, "application/json", EMBED, max_tokens=8) == ASK | more


def test_it_has_an_engine_of_its_own() -> None:
    table = parse_router(router(expert("base"), EMBEDDER, expert("tuned", ADAPTER)))
    assert [e.name for e in table.live] == ["base", "tuned"]
    assert table.embedder is not None
    assert [(g.embeds, len(g.experts)) for g in model_groups(table)] == [(False, 2), (True, 1)]


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        ([EMBEDDER | {"adapter_key": ADAPTER}], "embeds, which vLLM does without adapters and drafts"),
        ([EMBEDDER | {"engine": {"max_model_len": 9, "backend": "transformers"}}], "expert 'minilm': embeds"),
        ([EMBEDDER, EMBEDDER | {"name": "other", "model_key": "e" * 64}], "two experts embed"),
        ([EMBEDDER | {"model_key": MODEL}], "one engine would both embed and write"),
        ([EMBEDDER | {"state": "draining"}, EMBEDDER], "two experts are named 'minilm'"),
    ],
)
def test_a_table_that_could_not_be_served_is_refused(experts: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_router(router(expert("base"), *experts))


def test_the_general_expert_is_one_that_writes() -> None:
    with pytest.raises(ConfigError, match=r"'minilm' is no live expert; choose one of: base"):
        parse_router(router(expert("base"), EMBEDDER, fallback="minilm"))


# From the manifest.


STAGES = START + "  - {name: minilm, kind: model, source: bert}\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """What vLLM would be asked about, which takes seconds: it knows all but one architecture."""
    seen: list[tuple[Any, str]] = []

    def why(config: Mapping[str, Any], backend: str) -> str | None:
        seen.append((config["architectures"], backend))
        return "it does not know Unheard" if config["architectures"] == ["Unheard"] else None

    monkeypatch.setattr("largeforge_ray.flow.plan.why_not_loadable", why)
    return seen


def test_a_router_stage_names_who_embeds(
    home: Path,  # noqa: F811
    tmp_path: Path,
    asked: list[tuple[Any, str]],
) -> None:
    store = open_store(tmp_path)
    text = STAGES + FROM_OUTCOMES.replace("held_out", "embedder: minilm, held_out")
    made = run(text, home, store)
    table = parse_router((store.fetch(made["routing"]) / "router.json").read_bytes())
    embedder = table.embedder
    assert embedder is not None
    assert (embedder.name, embedder.model_key) == ("minilm", made["minilm"].key)
    assert embedder.engine.max_model_len == longest_text(home / "bert")
    assert made["minilm"].key in made["routing"].parents
    assert made["routing"].key != make_plan(parse_manifest(START + FROM_OUTCOMES), store, home)["routing"].key
    assert asked == [(["BertModel"], "vllm")]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("embedder: chats", "'chats' produces dataset, but embedder needs a stage that produces model"),
        ("embedder: orders", "'orders' produces adapter, but embedder needs a stage that produces model"),
        ("embedder: base", "'base' is the manifest's model and no stage"),
        ("embedder: minilms", "did you mean 'minilm'"),
    ],
)
def test_who_cannot_embed_is_refused(stage: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_manifest(STAGES + FROM_OUTCOMES.replace("held_out", f"{stage}, held_out"))


def test_a_model_that_vllm_does_not_know_is_refused_before_anything_starts(
    home: Path,  # noqa: F811
    tmp_path: Path,
    asked: list[tuple[Any, str]],
) -> None:
    there = tmp_path / "home"
    shutil.copytree(home, there)
    settings = json.loads((there / "bert" / "config.json").read_text())
    (there / "bert" / "config.json").write_text(json.dumps(settings | {"architectures": ["Unheard"]}))
    text = STAGES + FROM_OUTCOMES.replace("held_out", "embedder: minilm, held_out")
    with pytest.raises(ConfigError, match=r"stage 'routing' cannot serve bert: it does not know Unheard"):
        make_plan(parse_manifest(text), open_store(tmp_path / "store"), there)
    assert len(asked) == 1


# Its files.


def test_how_tokens_become_a_vector_is_copied_and_part_of_its_identity(tmp_path: Path) -> None:
    bert = tiny_bert(tmp_path)
    config = ModelConfig(source=str(bert), max_model_len=16)
    before = locate(config).identity
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (bert / "onnx").mkdir()
    (bert / "onnx" / "config.json").write_text("{}")
    found = locate(config)
    assert found.identity != before
    for n, source in enumerate((found, locate(config.model_copy(update={"source": f"file://{bert}"})))):
        made = tmp_path / f"made{n}"
        made.mkdir()
        materialise(source, made)
        assert json.loads((made / "1_Pooling" / "config.json").read_text()) == {
            "pooling_mode_mean_tokens": True
        }
        assert not (made / "onnx").exists()


def test_the_longest_text_is_what_the_model_was_made_for(tmp_path: Path) -> None:
    bert = tiny_bert(tmp_path)
    settings = json.loads((bert / "config.json").read_text())
    assert longest_text(bert) == settings["max_position_embeddings"]
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    assert longest_text(bert) == 24
    shutil.rmtree(bert)
    bert.mkdir()
    (bert / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="how long a text may be is not known"):
        longest_text(bert)


@pytest.mark.parametrize("gpus", [0, 1])
def test_its_engine_pools_and_takes_no_adapters(gpus: int, tmp_path: Path) -> None:
    hardware = Hardware(cpus=2, gpus=gpus, memory_gib=8, disk_gib=8)
    args = engine_args(tmp_path, max_model_len=256, max_lora_rank=8, embeds=True, hardware=hardware)
    assert (args["runner"], args["dtype"], args["max_model_len"]) == ("pooling", "auto", 256)
    assert "enable_lora" not in args
