"""Log-likelihoods: equal to lm-eval's, whatever is computed together, for models that share and others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.scorer import ScorerActor
from largeforge_ray.models.likelihood import Likelihood
from largeforge_ray.models.token_tree import Tree, lay_out
from largeforge_ray.types import ChoiceRequest, ChoiceScores
from tests.unit._tiny import bench_of, stage_of, tiny_model

LONGEST = 96
CHAT = ({"role": "user", "content": "Which city is the order for?"},)
SHOT = "Question: where is Ingrid?\nAnswer: Vienna\n\n"
REQUESTS = [
    ChoiceRequest("letters", (" A", " B", " C", " D"), f"{SHOT}Ship 12 lanterns.\nA. to\nB. the\nAnswer:"),
    ChoiceRequest("more letters", (" A", " B"), f"{SHOT}Count the stools.\nA. ship\nB. it\nAnswer:"),
    ChoiceRequest("words", (" Tallinn", " the city of Vienna", " the city", " Ingrid 東京"), f"{SHOT}Where?"),
    ChoiceRequest("space", ("twelve stools", "it"), "Ship \n"),
    ChoiceRequest("nothing before", ("lanterns", "<|im_end|>Vienna"), ""),
    ChoiceRequest("begun", (" so", " yes"), "<|im_end|>system"),
    ChoiceRequest("cut", (" to Tallinn", " to the city of Vienna, twelve"), "order lantern " * 40),
    ChoiceRequest("chat", ("Tallinn", "Vienna it is"), messages=CHAT),
    ChoiceRequest("same again", (" Tallinn", " the city"), f"{SHOT}Where?"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("likelihood"))


def other_model(tiny: Path, name: str) -> Path:
    """A model of another kind with the tiny one's tokenizer."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    folder, size = tiny.parent / name, len(tokenizer)
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, **ends}
    shape = {"vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2}
    torch.manual_seed(0)
    model: Any = {
        "mistral": lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(**shape, **heads, sliding_window=32)
        ),
        "mamba": lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(**shape, **ends, state_size=4)
        ),
    }[name]()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def likelihood(folder: Path) -> Likelihood:
    return Likelihood(str(folder), max_model_len=LONGEST, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Likelihood:
    return likelihood(tiny)


def harness_scores(folder: Path, requests: Sequence[ChoiceRequest]) -> list[ChoiceScores]:
    """What lm-eval's own model gives, choice by choice."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        pretrained=str(folder),
        device="cpu",
        dtype="float32",
        batch_size=3,
        max_length=LONGEST,
        tokenizer=None,
    )
    made = []
    for request in requests:
        context = request.context
        if request.messages is not None:
            context = lm.apply_chat_template(list(request.messages))
        asked = [
            Instance("loglikelihood", {}, (context, choice), i) for i, choice in enumerate(request.choices)
        ]
        pairs = lm.loglikelihood(asked, disable_tqdm=True)
        made.append(ChoiceScores(request.request_id, *map(tuple, zip(*pairs, strict=True))))
    return made


def assert_equal(found: Sequence[ChoiceScores], expected: Sequence[ChoiceScores]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.error is None
        assert (one.request_id, one.greedy) == (other.request_id, other.greedy)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "mistral", "mamba"])
def test_scores_are_those_of_lm_eval(tiny: Path, kind: str) -> None:
    """One shares all it can, one up to its attention window, and one has a state and shares nothing."""
    folder = tiny if kind == "llama" else other_model(tiny, kind)
    assert_equal(likelihood(folder).score(REQUESTS), harness_scores(folder, REQUESTS))


def test_a_request_scores_alike_alone_and_among_others(model: Likelihood) -> None:
    alone = [model.score([request])[0] for request in REQUESTS]
    assert_equal(model.score(REQUESTS), alone)
    assert_equal(model.score(REQUESTS[::-1])[::-1], alone)


def test_the_token_the_model_would_say_next_is_the_greedy_one(tiny: Path, model: Likelihood) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    context = "Ship the order to"
    ids = tokenizer(context, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = [tokenizer.decode(i) for i in plain(ids).logits[0, -1].argsort(descending=True)[:2]]
    scores = model.score([ChoiceRequest("one", tuple(best), context)])[0]
    assert scores.greedy == (True, False)
    assert scores.logprobs[0] > scores.logprobs[1]


def test_tokens_and_seconds_are_counted(model: Likelihood) -> None:
    letters = model.score(REQUESTS)[0]
    assert letters.completion_tokens == 8  # a space and a letter each
    assert 0 < letters.prompt_tokens < LONGEST
    assert letters.seconds > 0


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ChoiceRequest("bad", (), "Where?"), "needs choices"),
        (ChoiceRequest("bad", (" a",)), "one of context and messages"),
        (ChoiceRequest("bad", (" a", ""), "Where?"), "choice '' or its prompt has no tokens"),
        (ChoiceRequest("bad", ("a",), "  "), "choice 'a' or its prompt has no tokens"),
        (ChoiceRequest("bad", (" order" * 200,), "Where?"), f"exceeds the context of {LONGEST}"),
        (
            ChoiceRequest("bad", (" a",), "Where?", adapter="/nowhere/lost"),
            "adapter lost cannot be loaded: the folder has no adapter_model",
        ),
    ],
)
def test_a_request_that_cannot_be_scored_harms_no_other(
    model: Likelihood, request_: ChoiceRequest, said: str
) -> None:
    before, bad, after = model.score([REQUESTS[0], request_, REQUESTS[2]])
    assert said in (bad.error or "")
    assert_equal([before, after], model.score([REQUESTS[0], REQUESTS[2]]))


def test_a_chat_that_the_template_refuses_harms_no_other(tiny: Path) -> None:
    model = likelihood(tiny)
    model._tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    refused, fine = model.score([ChoiceRequest("bad", ("a",), messages=CHAT), REQUESTS[0]])
    assert "chat template refuses the messages: no system turn" in (refused.error or "")
    assert_equal([fine], model.score(REQUESTS[:1]))


def test_adapters_are_switched_request_by_request(tiny: Path, tmp_path: Path) -> None:
    import torch
    import transformers
    from peft import PeftModel

    from largeforge_ray.train.lora import save_adapter

    bench = bench_of(tiny, stage_of("sft"))
    folder = tmp_path / "a.dotted.name"
    folder.mkdir()
    save_adapter(bench.model, bench.lane.name, bench.lane.weights(), folder)
    model = likelihood(tiny)
    adapted = [replace(request, adapter=str(folder)) for request in REQUESTS]
    turns = [each for pair in zip(REQUESTS, adapted, strict=True) for each in pair]
    found = model.score(turns)
    assert_equal(found[::2], likelihood(tiny).score(REQUESTS))
    merged = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tiny), folder)
    whole = tmp_path / "whole"
    merged.merge_and_unload().save_pretrained(whole)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(whole)
    assert_equal(found[1::2], likelihood(whole).score(REQUESTS))
    assert not torch.allclose(*(torch.tensor(found[i].logprobs) for i in (0, 1)), atol=0.01)


def test_an_adapter_of_another_model_is_refused_and_leaves_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from largeforge_ray.train.lora import save_adapter

    bench = bench_of(tiny, stage_of("sft"))
    save_adapter(bench.model, bench.lane.name, bench.lane.weights(), tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    first = next(name for name in weights if "lora_A" in name)
    save_file(weights | {first: weights[first][:, :3].contiguous()}, tmp_path / "adapter_model.safetensors")
    model = likelihood(tiny)
    plain, refused = model.score([REQUESTS[0], replace(REQUESTS[0], adapter=str(tmp_path))])
    assert "cannot be loaded" in (refused.error or "")
    assert_equal(model.score(REQUESTS[:1]), [plain])


def test_callers_of_an_actor_share_passes_and_one_that_leaves_harms_no_other(tiny: Path) -> None:
    actor = ScorerActor(str(tiny), LONGEST)
    batches: list[int] = []
    score = actor._likelihood.score

    def counted(requests: Sequence[ChoiceRequest]) -> list[ChoiceScores]:
        batches.append(len(requests))
        return score(requests)

    actor._likelihood.score = counted  # type: ignore[method-assign]

    async def call() -> list[Any]:
        calls = [asyncio.create_task(actor.generate([request])) for request in REQUESTS]
        await asyncio.sleep(0)
        calls[1].cancel()
        made = await asyncio.gather(*calls, return_exceptions=True)
        await actor.stop()
        return made

    made = asyncio.run(call())
    assert isinstance(made.pop(1), asyncio.CancelledError)
    asked = [request for i, request in enumerate(REQUESTS) if i != 1]
    assert_equal([scores for (scores,) in made], score(asked))
    assert batches == [len(REQUESTS)]


ids = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)


@given(st.lists(ids, min_size=1, max_size=12), st.integers(1, 20), st.integers(0, 20))
def test_every_sequence_lies_in_one_tree_and_sees_only_itself(
    sequences: list[tuple[int, ...]], full: int, more: int
) -> None:
    import torch

    parts = lay_out(sequences, full, full + more)
    assert sorted(i for part in parts for i in part) == list(range(len(sequences)))
    for part in parts:
        tree = Tree.of([sequences[i] for i in part])
        beginnings = {sequences[i][: n + 1] for i in part for n in range(len(sequences[i]))}
        assert len(tree.ids) == len(beginnings)
        assert len(part) == 1 or len(tree.ids) <= full + more
        seen = tree.mask(torch.float32)[0, 0] == 0
        for i, path in zip(part, tree.paths, strict=True):
            assert tuple(tree.ids[node] for node in path) == sequences[i]
            assert [tree.depths[node] for node in path] == list(range(len(path)))
            for depth, node in enumerate(path):
                assert seen[node].nonzero().flatten().tolist() == sorted(path[: depth + 1])


def test_sequences_that_share_most_of_their_tokens_go_on_past_a_full_part() -> None:
    alike = [(1,) * 10 + (i,) for i in range(5)]
    assert [len(part) for part in lay_out([*alike, (9,) * 8], full=12, most=30)] == [5, 1]
    unlike = [(i,) * 6 for i in range(4)]
    assert [len(part) for part in lay_out(unlike, full=12, most=30)] == [2, 2]
