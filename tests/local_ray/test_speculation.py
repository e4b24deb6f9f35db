"""Real engines with a model of two layers: those that speculate, and those that divide it among workers, give
the same answers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from largeforge_ray.config.speculation import Draft, Eagle, Mtp, Ngram, Speculation
from largeforge_ray.models import detect, engine_args, engine_env
from largeforge_ray.models.speculation import SpeculationNumbers, check_speculation
from serve_apps.placing import Placing
from tests.unit._tiny import stage_of, text, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOKENS = 48
NGRAM = Ngram(kind="ngram", prompt_lookup_min=1)


class Running:
    """An engine in a loop of its own."""

    def __init__(self, llm: Any, runner: asyncio.Runner) -> None:
        self.llm, self._runner = llm, runner
        self._tokenizer = llm.get_tokenizer()

    def ask(self, prompts: list[str], adapter: Path | None = None) -> tuple[list[list[int]], Any]:
        """The most likely answers, asked for at once, and what was drafted for them."""
        answers = self._runner.run(self._ask(prompts, adapter))
        numbers = SpeculationNumbers()
        for answer in answers:
            numbers = numbers.after(answer.spec_decode_metrics) if answer.spec_decode_metrics else numbers
        return [list(answer.token_ids) for answer in answers], numbers

    async def _ask(self, prompts: list[str], adapter: Path | None) -> list[Any]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0, max_tokens=TOKENS, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
        )
        handle = LoRARequest(adapter.name, 1, str(adapter)) if adapter else None

        async def one(prompt: str) -> Any:
            ids = {"prompt_token_ids": self._tokenizer.encode(prompt)}
            async for output in self.llm.generate(ids, params, uuid4().hex, lora_request=handle):
                return output.outputs[0]

        return await asyncio.gather(*map(one, prompts))


@contextmanager
def running(
    model: Path,
    speculation: Speculation | None,
    draft: Path | None = None,
    placing: Placing | None = None,
    **more: Any,
) -> Iterator[Running]:
    placing = placing or Placing()
    os.environ.update(engine_env(workers=placing.workers))
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    args = engine_args(
        model, max_model_len=256, max_num_seqs=8, speculation=speculation, draft_dir=draft, **more
    )
    args |= placing.engine_args()

    async def start() -> Any:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**args, disable_log_stats=True))

    with asyncio.Runner() as runner:
        llm = runner.run(start())
        try:
            yield Running(llm, runner)
        finally:
            llm.shutdown()


def worker_seconds() -> dict[int, float]:
    """CPU time of each thread of vLLM's worker, which computes."""
    here = psutil.Process().children(recursive=True)
    (worker,) = (child for child in here if child.name().startswith("VLLM::Worker"))
    return {thread.id: thread.user_time for thread in worker.threads()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("speculation"), head_dim=32)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn, not trained: it changes the answers."""
    import torch

    from largeforge_ray.train.bench import Bench
    from largeforge_ray.train.lora import save_adapter

    folder = tmp_path_factory.mktemp("adapter") / "drawn"
    folder.mkdir()
    bench = Bench(stage_of("sft", precision="bfloat16"), str(model))
    lane = bench.add_lane(stage_of("sft", precision="bfloat16"))
    generator = torch.Generator().manual_seed(1)
    for name, weight in lane.weights().items():
        if ".lora_B." in name:
            weight.add_(torch.randn(weight.shape, generator=generator))
    save_adapter(bench.model, lane.name, lane.weights(), folder)
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    import random

    rng = random.Random(3)
    return [text(rng, 12) for _ in range(8)]


@pytest.fixture(scope="module")
def plain(model: Path, adapter: Path, prompts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Answers of model and adapter, one request at a time."""
    with running(model, None, max_lora_rank=8) as engine:
        base, adapted = ([engine.ask([p], folder)[0][0] for p in prompts] for folder in (None, adapter))
    assert base != adapted
    return base, adapted


def test_ngrams_leave_the_answers_of_the_model_and_of_an_adapter_as_they_are(
    model: Path, adapter: Path, prompts: list[str], plain: tuple[list[list[int]], list[list[int]]]
) -> None:
    drafted = {"base": 0, "adapted": 0}
    with running(model, NGRAM, max_lora_rank=8) as engine:
        before = worker_seconds()
        for name, folder, wanted in (("base", None, plain[0]), ("adapted", adapter, plain[1])):
            for prompt, answer in zip(prompts, wanted, strict=True):
                answers, numbers = engine.ask([prompt], folder)
                assert answers == [answer]
                drafted[name] += numbers.accepted
            answers, _ = engine.ask(prompts, folder)
            assert answers == wanted
        spent = {thread: s - before.get(thread, 0.0) for thread, s in worker_seconds().items()}
    assert min(drafted.values()) > 0
    busy = [s for s in spent.values() if s > max(spent.values()) / 4]
    assert len(busy) == detect().cpus, "looking n-grams up changed the engine's number of threads"


def test_a_draft_that_is_the_model_itself_is_mostly_right(
    model: Path, prompts: list[str], plain: tuple[list[list[int]], list[list[int]]]
) -> None:
    speculation = Draft(kind="draft", model="twin")
    check_speculation(speculation, model, model)
    with running(model, speculation, model) as engine:
        found = [engine.ask([prompt]) for prompt in prompts]
    assert [answers[0] for answers, _ in found] == plain[0]
    drafted = sum(numbers.drafted for _, numbers in found)
    assert drafted > 0
    assert sum(numbers.accepted for _, numbers in found) > 0.9 * drafted


def test_a_draft_that_is_never_right_is_switched_off(
    model: Path, prompts: list[str], plain: tuple[list[list[int]], list[list[int]]], tmp_path: Path
) -> None:
    import torch
    import transformers

    stranger = tmp_path / "stranger"
    shutil.copytree(model, stranger)
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(model)
    transformers.LlamaForCausalLM(config).save_pretrained(stranger)
    with running(model, Draft(kind="draft", model="stranger"), stranger) as engine:
        first = engine.ask(prompts[:1])[1]
        found = [engine.ask([prompt]) for prompt in prompts]
    assert [answers[0] for answers, _ in found] == plain[0]
    assert first.drafted > 0
    assert sum(numbers.steps for _, numbers in found) < 0.2 * TOKENS * len(prompts)


def test_a_head_that_reads_hidden_states_drafts_and_changes_no_answer(
    model: Path, prompts: list[str], plain: tuple[list[list[int]], list[list[int]]], tmp_path: Path
) -> None:
    """An EAGLE head as such are published, whose weights are drawn: it is never right, and goes off."""
    import torch
    import transformers
    from safetensors.torch import save_file

    config = transformers.AutoConfig.from_pretrained(model)
    config.num_hidden_layers = 1
    torch.manual_seed(1)
    drawn = transformers.LlamaForCausalLM(config)
    layers = {n.removeprefix("model."): w for n, w in drawn.state_dict().items() if ".layers." in n}
    del layers["layers.0.input_layernorm.weight"]
    head = tmp_path / "head"
    drawn.config.save_pretrained(head)
    save_file(
        layers | {"fc.weight": torch.randn(config.hidden_size, 2 * config.hidden_size)},
        head / "model.safetensors",
    )
    speculation = Eagle(kind="eagle", model="head")
    check_speculation(speculation, model, head)
    with running(model, speculation, head) as engine:
        first = engine.ask(prompts[:1])[1]
        found = [engine.ask([prompt])[0][0] for prompt in prompts]
    assert found == plain[0]
    assert first.drafted > 0


def test_the_layers_of_a_model_that_predict_further_tokens_draft_and_change_no_answer(
    model: Path, prompts: list[str], tmp_path: Path
) -> None:
    """A mixture of experts with one such layer, all drawn."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "multi"
    shutil.copytree(model, folder)
    size, vocabulary = 64, transformers.AutoConfig.from_pretrained(model).vocab_size
    config = transformers.Ernie4_5_MoeConfig(
        vocab_size=vocabulary,
        hidden_size=size,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        initializer_range=0.2,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    transformers.Ernie4_5_MoeForCausalLM(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    block = {n.split("layers.0.")[1]: w for n, w in weights.items() if "layers.0." in n}
    own = {f"model.mtp_block.0.{name}": weight.clone() for name, weight in block.items()}
    own |= {f"model.mtp_{name}_norm.0.weight": torch.ones(size) for name in ("emb", "hidden")}
    own["model.mtp_linear_proj.0.weight"] = torch.randn(size, 2 * size) * 0.2
    save_file(weights | own, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_nextn_predict_layers": 1}))

    with running(folder, None) as engine:
        wanted = [engine.ask([prompt])[0][0] for prompt in prompts]
    check_speculation(Mtp(kind="mtp"), folder)
    with running(folder, Mtp(kind="mtp")) as engine:
        first = engine.ask(prompts[:1])[1]
        found = [engine.ask([prompt])[0][0] for prompt in prompts]
    assert found == wanted
    assert first.drafted > 0


def test_workers_that_share_each_layer_answer_as_one_does(
    model: Path,
    adapter: Path,
    prompts: list[str],
    plain: tuple[list[list[int]], list[list[int]]],
) -> None:
    """But for ties: sums of parts are rounded otherwise in bfloat16, and this model knows nothing."""
    with running(model, None, placing=Placing(tensor_parallel_size=2), max_lora_rank=8) as engine:
        here = psutil.Process().children(recursive=True)
        workers = [child for child in here if child.name().startswith("VLLM::Worker")]
        found = [[engine.ask([p], folder)[0][0] for p in prompts] for folder in (None, adapter)]
        busy = [worker.cpu_times().user for worker in workers]
    assert len(workers) == 2
    assert min(busy) > max(busy) / 4
    for answers, wanted in zip(found, plain, strict=True):
        first = [answer[0] == want[0] for answer, want in zip(answers, wanted, strict=True)]
        assert sum(first) >= len(first) - 1
        alike = [sum(a == b for a, b in zip(x, y, strict=True)) for x, y in zip(answers, wanted, strict=True)]
        print(f"\ntokens as of one worker, of {TOKENS}: {alike}")
        assert sum(alike) > 0.4 * TOKENS * len(alike)
