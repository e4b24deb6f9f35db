"""transformers behind the interface of an engine: real generation by tiny random models, without Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import transformers
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from largeforge_ray.errors import ConfigError
from largeforge_ray.routing import parse_router
from serve_apps.engine import start_engine
from serve_apps.fleet import TOKEN_HEADER, VERSION_HEADER
from serve_apps.generated_text import UNFINISHED
from serve_apps.metered import Usage
from serve_apps.openai_errors import ReplyHead
from serve_apps.placing import Placing
from serve_apps.replica import ReplicaApp
from serve_apps.transformers_engine import TransformersEngine
from tests.unit._front import CHAT
from tests.unit._tiny import tiny_model
from tests.unit.test_routing import ADAPTER, expert, router

PLAIN = "/v1/completions"
MESSAGES = [{"role": "user", "content": "order twelve lanterns"}]
GREEDY = {"model": "base@1", "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
PROMPT = {"model": "base@1", "prompt": "ship to Tallinn", "temperature": 0, "max_tokens": 12}
CONTEXT_TOKENS = 2000

Ended = list[Usage]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def started(folder: Path, ended: Ended, context: int = CONTEXT_TOKENS) -> Any:
    return start_engine(
        "transformers",
        folder,
        ["base@1"],
        max_model_len=context,
        max_tokens=context,
        max_lora_rank=8,
        placing=Placing(max_num_seqs=4),
        ended=ended.append,
    )


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[tuple[TransformersEngine, Ended]]:
    ended: Ended = []
    engine = started(folder, ended)
    yield engine, ended
    engine.shutdown()


@pytest.fixture
def engine(running: tuple[TransformersEngine, Ended]) -> TransformersEngine:
    return running[0]


@pytest.fixture
def ended(running: tuple[TransformersEngine, Ended]) -> Ended:
    running[1].clear()
    return running[1]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The same weights, to compute independently what is to come."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def generated(model: Any, tokenizer: Any, tokens: int = 24) -> str:
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(out, skip_special_tokens=True))


async def reply(engine: Any, payload: dict[str, Any], path: str = CHAT) -> tuple[ReplyHead, bytes]:
    head, *body = [part async for part in engine.answer(path, payload)]
    return head, b"".join(body)


async def answer(engine: Any, **payload: Any) -> ChatCompletion:
    head, body = await reply(engine, GREEDY | payload)
    assert head.status == 200, body
    return ChatCompletion.model_validate_json(body)


async def text(engine: Any, **payload: Any) -> str:
    return str((await answer(engine, **payload)).choices[0].message.content)


async def events(engine: Any, payload: dict[str, Any], path: str = CHAT) -> list[dict[str, Any]]:
    head, body = await reply(engine, payload | {"stream": True}, path)
    assert head == ReplyHead(200, "text/event-stream; charset=utf-8")
    *lines, last = body.decode().removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def refused(engine: Any, payload: dict[str, Any], path: str = CHAT) -> tuple[int, dict[str, Any]]:
    head, body = await reply(engine, payload, path)
    return head.status, json.loads(body)["error"]


def run(test: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(test)


def test_a_greedy_answer_is_what_generate_gives(engine: Any, model: Any, tokenizer: Any) -> None:
    assert run(text(engine)) == generated(model, tokenizer).rstrip(UNFINISHED)


def test_a_streamed_answer_is_the_whole_one_with_its_role_first(engine: Any) -> None:
    chunks = [ChatCompletionChunk.model_validate(each) for each in run(events(engine, GREEDY))]
    first, *others = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert len(others) > 2
    assert "".join(each.choices[0].delta.content or "" for each in others) == run(text(engine))
    assert [each.choices[0].finish_reason for each in chunks] == [None] * len(others) + ["length"]
    assert len({each.id for each in chunks}) == 1
    assert all(each.object == "chat.completion.chunk" for each in chunks)


def test_usage_counts_prompt_and_answer_and_is_streamed_when_asked(
    engine: Any, ended: Ended, tokenizer: Any
) -> None:
    prompt = len(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"])
    counted = {"prompt_tokens": prompt, "completion_tokens": 48, "total_tokens": prompt + 48}
    whole = run(answer(engine, n=2))
    streamed = run(events(engine, GREEDY | {"n": 2, "stream_options": {"include_usage": True}}))
    assert whole.usage is not None
    assert whole.usage.model_dump(exclude_none=True) == streamed[-1]["usage"] == counted
    assert streamed[-1]["choices"] == []
    assert [(u.name, u.prompt_tokens, u.completion_tokens) for u in ended] == [(None, prompt, 48)] * 2
    assert all(0 < usage.first_s < usage.seconds for usage in ended)


def test_a_seed_repeats_its_choices_and_each_is_drawn_anew(engine: Any) -> None:
    def drawn(seed: int | None) -> list[str | None]:
        made = run(answer(engine, temperature=1.0, n=3, seed=seed))
        assert [choice.index for choice in made.choices] == [0, 1, 2]
        return [choice.message.content for choice in made.choices]

    assert drawn(7) == drawn(7)
    assert len(set(drawn(7)) | set(drawn(70))) == 6
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}])
def test_what_leaves_only_the_likeliest_token_is_greedy(engine: Any, cut: dict[str, Any]) -> None:
    assert run(text(engine, **({"temperature": 1.5} | cut))) == run(text(engine))


def test_a_stop_string_ends_the_answer_and_is_not_in_it(engine: Any, ended: Ended) -> None:
    whole = run(text(engine))
    stop = whole[len(whole) // 2 :][:3]
    stopped = run(answer(engine, stop=["never", stop]))
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (
        whole[: whole.index(stop)],
        "stop",
    )
    chunks = run(events(engine, GREEDY | {"stop": stop}))
    assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == whole[: whole.index(stop)]
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens < 24
    assert {usage.completion_tokens for usage in ended[1:]} == {stopped.usage.completion_tokens}


def test_the_end_that_the_models_generation_config_names_ends_an_answer(
    folder: Path, engine: Any, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    out = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    ending = next(token for token in out[2:] if out.index(token) >= 2)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    transformers.GenerationConfig(eos_token_id=[tokenizer.eos_token_id, ending]).save_pretrained(tmp_path)
    other = started(tmp_path, [])
    made = run(answer(other))
    other.shutdown()
    assert made.choices[0].finish_reason == "stop"
    assert made.usage is not None
    assert made.usage.completion_tokens == out.index(ending) + 1
    assert run(text(engine)).startswith(str(made.choices[0].message.content))


def test_log_probabilities_are_the_models_own_before_temperature(
    engine: Any, model: Any, tokenizer: Any
) -> None:
    asked = {"logprobs": True, "top_logprobs": 3, "temperature": 0.7, "seed": 1, "max_tokens": 4}
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    expected = model(ids).logits[0, -1].log_softmax(-1)
    found = run(answer(engine, **asked)).choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert len(found.content) == 4
    best = [each.logprob for each in found.content[0].top_logprobs]
    assert best == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
    names = {
        tokenizer.decode([token])
        for token in expected.sub(found.content[0].logprob).abs().topk(3, largest=False).indices
    }
    assert found.content[0].token in names
    streamed = [each["choices"][0]["logprobs"] for each in run(events(engine, GREEDY | asked))]
    joined = [each for part in streamed if part for each in part["content"]]
    assert [each["token"] for each in joined] == [each.token for each in found.content]


def test_plain_completions_continue_the_prompt(engine: Any, model: Any, tokenizer: Any) -> None:
    ids = tokenizer("ship to Tallinn", return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    head, body = run(reply(engine, PROMPT | {"logprobs": 2}, PLAIN))
    made = Completion.model_validate_json(body)
    assert head == ReplyHead(200)
    assert made.choices[0].text == tokenizer.decode(out).rstrip(UNFINISHED)
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [tokenizer.decode([token]) for token in out]
    chunks = [Completion.construct(**each) for each in run(events(engine, PROMPT | {"logprobs": 2}, PLAIN))]
    assert "".join(each.choices[0].text for each in chunks) == made.choices[0].text
    parts = [each.choices[0].logprobs for each in chunks]
    assert [at for part in parts if part for at in part.text_offset or []] == logprobs.text_offset


def test_the_openai_client_talks_to_it_through_a_replicas_port(engine: Any) -> None:
    async def talk() -> list[str]:
        transport = httpx.ASGITransport(ReplicaApp(engine, "token", 8))
        headers = {TOKEN_HEADER: "token", VERSION_HEADER: "base@1"}
        async with httpx.AsyncClient(transport=transport, headers=headers) as http:
            client = openai.AsyncOpenAI(api_key="none", base_url="http://replica/v1", http_client=http)
            whole = await client.chat.completions.create(**GREEDY)
            stream = await client.chat.completions.create(**GREEDY, stream=True)
            parts = [chunk.choices[0].delta.content async for chunk in stream]
            with pytest.raises(openai.BadRequestError, match="tools is not supported"):
                await client.chat.completions.create(**GREEDY, tools=[{"type": "function"}])
        return [str(whole.choices[0].message.content), "".join(part or "" for part in parts)]

    whole, streamed = run(talk())
    assert whole == streamed == run(text(engine))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"regex": "a+"}),
        ("logit_bias", {"5": 1.0}),
        ("presence_penalty", 0.5),
        ("min_p", 0.1),
        ("stop_token_ids", [3]),
        ("made_up", 1),
    ],
)
def test_a_field_that_is_not_supported_is_refused_by_name(engine: Any, field: str, value: Any) -> None:
    status, error = run(refused(engine, GREEDY | {field: value}))
    assert (status, error["param"], error["code"]) == (400, field, "unsupported_parameter")
    assert field in error["message"]


def test_fields_that_ask_for_nothing_pass(engine: Any) -> None:
    nothing = {"tools": [], "presence_penalty": 0, "response_format": {"type": "text"}, "logit_bias": None}
    assert run(text(engine, **nothing, user="alice")) == run(text(engine))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("n", 9),
        ("stop", ""),
        ("stop", ["x"] * 17),
        ("seed", 1.5),
        ("top_logprobs", 2),
        ("stream_options", {"include_usage": True}),
        ("max_tokens", 0),
    ],
)
def test_a_wrong_value_is_refused_by_its_field(engine: Any, field: str, value: Any) -> None:
    status, error = run(refused(engine, GREEDY | {field: value}))
    assert (status, error["param"], error["type"]) == (400, field, "invalid_request_error")


def test_a_turn_that_calls_tools_is_refused(engine: Any) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    status, error = run(refused(engine, GREEDY | {"messages": [*MESSAGES, turn]}))
    assert (status, error["param"]) == (400, "messages[1].tool_calls")


def test_text_parts_are_lines_of_one_turn(engine: Any) -> None:
    parts = [{"type": "text", "text": "order"}, {"type": "text", "text": "twelve"}]
    split = [{"role": "user", "content": parts}]
    joined = [{"role": "user", "content": "order\ntwelve"}]
    assert run(text(engine, messages=split)) == run(text(engine, messages=joined))


@pytest.mark.parametrize(
    ("words", "tokens"), [(CONTEXT_TOKENS, None), (1, CONTEXT_TOKENS), (CONTEXT_TOKENS, 1)]
)
@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_what_exceeds_the_context_is_refused(engine: Any, path: str, words: int, tokens: int | None) -> None:
    long = "order " * words
    prompt = {"messages": [{"role": "user", "content": long}]} if path == CHAT else {"prompt": long}
    status, error = run(refused(engine, {"model": "base@1", "max_tokens": tokens, **prompt}, path))
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == ("messages" if path == CHAT else "prompt")


def test_a_model_that_is_not_served_is_not_found(engine: Any) -> None:
    assert run(refused(engine, GREEDY | {"model": "gone@1"}))[0] == 404


def test_two_backends_for_one_model_are_refused() -> None:
    table = router(expert("base"), expert("tuned", ADAPTER))
    assert parse_router(table).expert("base").engine.backend == "vllm"  # type: ignore[union-attr]
    table["experts"][0]["engine"]["backend"] = "transformers"
    with pytest.raises(ConfigError, match=r"base \(transformers\), tuned \(vllm\)"):
        parse_router(table)
