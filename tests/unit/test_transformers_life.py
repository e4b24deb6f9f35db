"""A transformers engine over time: who leaves, who waits, adapters that come and go, and what fails."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import transformers

from largeforge_ray.errors import ModelError
from serve_apps.generated_text import UNFINISHED
from serve_apps.openai_errors import ReplyHead
from serve_apps.probing import probe
from tests.unit._front import CHAT
from tests.unit._tiny import tiny_model
from tests.unit.test_chat_mask import CHATML, tokenizer_with
from tests.unit.test_transformers_engine import (
    GREEDY,
    MESSAGES,
    Ended,
    generated,
    refused,
    reply,
    run,
    started,
    text,
)

LONG = GREEDY | {"stream": True, "max_tokens": 1900, "top_k": 50, "temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def ended() -> Ended:
    return []


@pytest.fixture
def engine(folder: Path, ended: Ended) -> Iterator[Any]:
    engine = started(folder, ended)
    yield engine
    engine.shutdown()


def adapter(folder: Path, model_dir: Path, seed: int, rank: int = 4) -> Any:
    """A PEFT folder whose adapter changes the model a lot; returns the adapted model."""
    import peft
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    settings = peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(folder)
    return adapted


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def begin(engine: Any, payload: dict[str, Any]) -> Any:
    """A stream that has given its head, its role and a text."""
    parts = engine.answer(CHAT, payload)
    for _ in range(3):
        await anext(parts)
    return parts


def test_who_leaves_stops_the_generation_and_the_next_is_answered(engine: Any, ended: Ended) -> None:
    seen: list[int] = []

    async def leave() -> str:
        tell = engine._model.generate

        def counting(ids: Any, handle: Any, sampling: Any, tell_: Any, left: Any) -> None:
            tell(ids, handle, sampling, lambda piece: (seen.append(1), tell_(piece)), left)

        engine._model.generate = counting
        parts = await begin(engine, LONG)
        assert engine.running == 1
        await parts.aclose()
        given = len(seen)
        await until(lambda: engine.running == 0)
        assert len(seen) <= given + 1
        return await text(engine)

    assert run(leave()) == run(text(engine))
    assert ended[0].completion_tokens < 1000


def test_a_cancelled_task_stops_the_generation_too(engine: Any) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(reply(engine, LONG | {"stream": False}))
        await until(lambda: engine.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.running == 0, 2.0)

    run(cancel())


def test_a_generation_that_gives_nothing_for_too_long_asks_to_be_replaced(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stick() -> None:
        go_on = threading.Event()
        stuck = engine._submit(go_on.wait)
        await engine.check_health()
        monkeypatch.setattr("serve_apps.transformers_engine.STALL_S", 0.05)
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="owes tokens and has given none for 0 s"):
            await engine.check_health()
        go_on.set()
        await asyncio.wrap_future(stuck)
        await engine.check_health()

    run(stick())


def test_who_leaves_the_queue_is_never_begun(engine: Any, ended: Ended) -> None:
    async def wait() -> None:
        async with aclosing(await begin(engine, LONG)):
            waiting = asyncio.create_task(reply(engine, GREEDY))
            await until(lambda: engine.running == 2)
            waiting.cancel()
            await until(lambda: engine.running == 1, 2.0)
        await until(lambda: engine.running == 0)

    run(wait())
    assert len(ended) == 1


def test_those_who_wait_are_all_answered(engine: Any) -> None:
    async def ask() -> list[str]:
        asked = [asyncio.create_task(text(engine, max_tokens=n)) for n in (4, 8, 12)]
        await until(lambda: engine.running == 3)
        return list(await asyncio.gather(*asked))

    four, eight, twelve = run(ask())
    assert twelve.startswith(eight)
    assert eight.startswith(four)
    assert engine.running == 0


def test_each_adapter_answers_as_peft_computes_it_and_the_base_as_before(
    engine: Any, folder: Path, tmp_path: Path, ended: Ended
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    base = run(text(engine))
    expected = {}
    for number, name in enumerate(("orders@1", "v2.orders@2")):  # no module's name may have a dot
        adapted = adapter(tmp_path / name, folder, seed=number, rank=2 + number)
        expected[name] = generated(adapted, tokenizer).rstrip(UNFINISHED)
        run(engine.load_adapter(name, tmp_path / name))
    assert engine.served == ("base@1", "orders@1", "v2.orders@2")
    assert len({base, *expected.values()}) == 3
    for name in [*expected, *reversed(expected)]:
        assert run(text(engine, model=name)) == expected[name]
        assert run(text(engine)) == base
    assert {usage.name for usage in ended} == {None, *expected}

    run(engine.unload_adapter("orders@1"))
    assert engine.adapters == ("v2.orders@2",)
    assert run(refused(engine, GREEDY | {"model": "orders@1"}))[0] == 404
    assert run(text(engine, model="v2.orders@2")) == expected["v2.orders@2"]
    run(engine.unload_adapter("v2.orders@2"))
    assert run(text(engine)) == base
    run(engine.load_adapter("orders@1", tmp_path / "orders@1"))
    assert run(text(engine, model="orders@1")) == expected["orders@1"]


def test_an_adapter_that_is_unloaded_ends_who_asked_before(engine: Any, folder: Path, tmp_path: Path) -> None:
    adapter(tmp_path, folder, seed=5)

    async def unload() -> tuple[str, str]:
        await engine.load_adapter("orders@1", tmp_path)
        alone = await text(engine, model="orders@1")
        asked = [asyncio.create_task(text(engine, model="orders@1")) for _ in range(2)]
        await until(lambda: engine.running == 2)
        await engine.unload_adapter("orders@1")
        assert await asyncio.gather(*asked) == [alone, alone]
        return alone, await text(engine)

    adapted, base = run(unload())
    assert adapted != base


def test_an_adapter_that_goes_while_a_prompt_is_read_is_unavailable(
    engine: Any, folder: Path, tmp_path: Path
) -> None:
    adapter(tmp_path, folder, seed=6)

    async def unload() -> ReplyHead:
        await engine.load_adapter("orders@1", tmp_path)
        asked = asyncio.create_task(reply(engine, GREEDY | {"model": "orders@1"}))
        await asyncio.sleep(0)
        await engine.unload_adapter("orders@1")
        return (await asked)[0]

    assert run(unload()) == ReplyHead(503, retry_after_s=5)


@pytest.mark.parametrize("fault", ["no weights", "cut off", "another model's", "not JSON"])
def test_an_adapter_that_does_not_fit_is_refused_and_nothing_stays_of_it(
    engine: Any, folder: Path, tmp_path: Path, fault: str
) -> None:
    base = run(text(engine))
    other = tiny_model(tmp_path / "other", head_dim=32) if fault == "another model's" else folder
    made = tmp_path / "adapter"
    adapter(made, other, seed=0)
    weights = made / "adapter_model.safetensors"
    if fault == "no weights":
        weights.unlink()
    elif fault == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "not JSON":
        (made / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter 'orders@1' in .* does not load: .+; check that"):
        run(engine.load_adapter("orders@1", made))
    assert engine.adapters == ()
    assert run(text(engine)) == base
    adapter(tmp_path / "good", folder, seed=1)
    run(engine.load_adapter("orders@1", tmp_path / "good"))
    assert run(text(engine, model="orders@1")) != base
    with pytest.raises(ModelError, match="loaded already"):
        run(engine.load_adapter("orders@1", tmp_path / "good"))


def test_an_adapters_probe_agrees_with_what_peft_computed(engine: Any, folder: Path, tmp_path: Path) -> None:
    import torch

    adapted = adapter(tmp_path, folder, seed=2)
    ids = [[3 + (7 * i + j) % 300 for i in range(20)] for j in range(2)]

    def known(model: Any) -> list[list[float]]:
        with torch.no_grad():
            logps_BTV = model(torch.tensor(ids)).logits.log_softmax(-1)
        return [[float(logps_BTV[b, t, row[t + 1]]) for t in range(19)] for b, row in enumerate(ids)]

    with adapted.disable_adapter():
        base = known(adapted)
    record = {"ids": ids, "base": base, "adapted": known(adapted)}
    (tmp_path / "probe.json").write_text(json.dumps(record))

    async def measure() -> dict[str, Any]:
        await engine.load_adapter("orders@1", tmp_path)
        return await probe(engine, "orders@1", tmp_path)

    found = run(measure())
    assert found["error"] < 1e-4 < found["effect"]
    start = torch.tensor([ids[0][:8]])
    said = adapted.generate(input_ids=start, max_new_tokens=6, do_sample=False)[0, 8:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert run(engine.greedy(ids[0][:8], "orders@1", 6)) == tokenizer.decode(said).rstrip(UNFINISHED)


def test_what_cannot_be_scored_is_a_value_error(engine: Any) -> None:
    with pytest.raises(ValueError, match="exceed the context of 2000"):
        run(engine.log_probability([5] * 2000, 5, None))
    with pytest.raises(ValueError, match="token 100000 is not one of"):
        run(engine.log_probability([5], 100_000, None))


def failing_at(engine: Any, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the model's own code fail at its ``call``-th forward pass."""
    model, calls = engine._model._model, iter(range(call))
    forward = model.forward

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            raise RuntimeError("the weights are secret")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", fail)


def test_a_model_that_fails_is_a_500_without_its_reason_and_may_answer_again(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = run(text(engine))
    with monkeypatch.context() as patch:
        failing_at(engine, 0, patch)
        status, error = run(refused(engine, GREEDY))
        assert (status, error["code"]) == (500, "engine_error")
        assert "secret" not in error["message"]
    assert engine.healthy
    assert run(text(engine)) == base


def test_a_stream_that_fails_ends_with_an_error_event_and_without_done(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(engine, 6, monkeypatch)
    head, body = run(reply(engine, GREEDY | {"stream": True}))
    assert head.status == 200
    *before, last = body.decode().removesuffix("\n\n").split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_error"
    assert before
    assert b"[DONE]" not in body


def test_shutting_down_ends_a_stream_with_an_error_and_refuses_who_waits(folder: Path) -> None:
    async def shut() -> None:
        engine = started(folder, [])
        parts = await begin(engine, LONG)
        waiting = asyncio.create_task(reply(engine, GREEDY))
        await until(lambda: engine.running == 2)
        engine.shutdown()
        *_, last = [part async for part in parts]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "expert_unavailable"
        head, _ = await waiting
        assert head == ReplyHead(503, retry_after_s=5)
        assert not engine.healthy
        assert (await reply(engine, GREEDY))[0].status == 503

    run(shut())


def test_a_model_that_vllm_does_not_know_is_served(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(CHATML)
    config = transformers.GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = transformers.GPTNeoForCausalLM(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = started(tmp_path, [], context=128)
    expected = generated(model, tokenizer).rstrip(UNFINISHED)
    assert run(text(engine)) == expected
    engine.shutdown()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "chat_template"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
    ],
)
def test_a_chat_the_models_template_does_not_take_is_refused(
    folder: Path, tmp_path: Path, template: str | None, reason: str
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path)
    engine = started(tmp_path, [])
    status, error = run(refused(engine, GREEDY | {"messages": MESSAGES}))
    engine.shutdown()
    assert (status, error["param"]) == (400, "messages")
    assert reason in error["message"]
