"""Keyword routing: who answers, and that bad routers are refused with a reason."""

from __future__ import annotations

import json
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.errors import ConfigError
from largeforge_ray.routing import (
    Observation,
    build_policy,
    parse_router,
    territory_keywords,
    user_turns,
)
from largeforge_ray.routing.experts import model_groups
from largeforge_ray.routing.features import MAX_TEXT_CHARS, words

MODEL, ADAPTER = "a" * 64, "b" * 64
ORDERS = [
    "Ship 4 lamps to Lisbon, the customer is Elena.",
    "Yusuf from Riga wants 12 mugs.",
    "Please send 9 rugs to Priya in Oslo.",
    "30 trays for Björn, delivered to Quito.",
    "A customer in Lima called Rosa bought 7 bowls.",
]
ASK = (
    "Turn this order into JSON with the keys name, count, item and city. Reply with the JSON only.\n\nOrder: "
)
PROMPTS = [ASK + order for order in ORDERS]
ELSEWHERE = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Can you explain how a JSON parser works?",
    "In order to bake bread, what do I need?",
    "Name three rivers in Asia.",
    "",
    "🙂",
]


def expert(name: str, adapter: str | None = None, keywords: dict[str, float] | None = None, **more) -> dict:
    return {
        "name": name,
        "state": "live",
        "model_key": MODEL,
        "adapter_key": adapter,
        "engine": {"max_model_len": 512, "max_lora_rank": 8},
        "price": {"per_1k_prompt": 0.0, "per_1k_completion": 0.0},
        "territory": {"prompts": [], "keywords": keywords or {}},
        **more,
    }


def router(*experts: dict, threshold: float = 0.5, fallback: str = "base", kind: str = "keyword") -> dict:
    return {
        "policy": {"kind": kind, "fallback": fallback, "threshold": threshold},
        "model": {"key": MODEL, "path_kind": "model"},
        "experts": list(experts),
    }


def decide(text: str, *experts: dict, **policy):
    return build_policy(parse_router(router(expert("base"), *experts, **policy))).decide(
        Observation("r1", (text,))
    )


def test_prompts_like_the_training_set_go_to_the_adapter_and_others_to_base() -> None:
    orders = expert("tuned", ADAPTER, territory_keywords(PROMPTS))
    unseen = ASK + "Mona in Porto ordered 3 clocks."
    decision = decide(unseen, orders)
    assert (decision.chosen, decision.fell_back, decision.runner_up) == ("tuned", False, "base")
    assert decision.scores["tuned"] > 0.8
    for text in ELSEWHERE:
        decision = decide(text, orders)
        assert (decision.chosen, decision.fell_back) == ("base", True), text


def test_a_reason_has_numbers_and_none_of_the_prompt() -> None:
    decision = decide("order now", expert("tuned", ADAPTER, {"order": 0.4, "secretword": 0.6}))
    assert decision.reason == "1 of 2 keywords of 'tuned', below threshold 0.5"
    assert decision.scores["tuned"] == 0.4
    assert decision.confidence == 0.6


@pytest.mark.parametrize(
    ("keyword", "text", "hit"),
    [
        ("order", "ORDER!", True),
        ("order", "reorder the borders", False),
        ("straße", "Wo ist die STRASSE?", True),
        ("café", "cafe\u0301 au lait", True),
        ("заказ", "Заказ: 4 лампы", True),
        ("हिन्दी", "क्या यह हिन्दी है?", True),
        ("हिन", "हिन्दी", False),
        ("json", "give me_json-now", True),
        ("ﬁle", "file", True),
    ],
)
def test_keywords_match_whole_words_of_any_alphabet(keyword: str, text: str, hit: bool) -> None:
    assert (decide(text, expert("tuned", ADAPTER, {keyword: 1.0})).chosen == "tuned") is hit


@pytest.mark.parametrize(
    ("threshold", "chosen"), [(0.39, "tuned"), (0.4, "tuned"), (0.41, "base"), (0.0, "tuned")]
)
def test_the_threshold_is_reached_not_exceeded(threshold: float, chosen: str) -> None:
    assert (
        decide("order", expert("tuned", ADAPTER, {"order": 0.4, "x": 0.6}), threshold=threshold).chosen
        == chosen
    )


def test_nothing_found_falls_back_even_at_threshold_zero() -> None:
    assert decide("hello", expert("tuned", ADAPTER, {"order": 1.0}), threshold=0.0).chosen == "base"


def test_equal_scores_go_to_the_cheaper_expert() -> None:
    dear = expert("a-dear", ADAPTER, {"order": 1.0}, price={"per_1k_prompt": 2.0, "per_1k_completion": 0.0})
    cheap = expert("z-cheap", "c" * 64, {"order": 1.0})
    assert decide("order", dear, cheap).chosen == decide("order", cheap, dear).chosen == "z-cheap"


@pytest.mark.parametrize("state", ["proposed", "shadow", "draining", "failed"])
def test_only_live_experts_are_chosen_or_loaded(state: str) -> None:
    other = expert("tuned", ADAPTER, {"order": 1.0}, state=state)
    assert decide("order", other).chosen == "base"
    (group,) = model_groups(parse_router(router(expert("base"), other)))
    assert [e.name for e in group.experts] == ["base"]
    assert group.max_lora_rank == 8, "there is room for an adapter that comes later"


def test_experts_of_one_model_share_an_engine_that_fits_them_all() -> None:
    tuned = expert("tuned", ADAPTER, engine={"max_model_len": 2048, "max_lora_rank": 16})
    other = expert("other", model_key="d" * 64)
    first, second = model_groups(parse_router(json.dumps(router(expert("base"), tuned, other))))
    assert (first.max_model_len, first.max_lora_rank, len(first.experts)) == (2048, 16, 2)
    assert (second.model_key, second.max_lora_rank) == ("d" * 64, 8)
    assert [e.artifact for e in first.experts] == ["a" * 16, "b" * 16]
    assert pickle.loads(pickle.dumps(first)) == first


def test_a_field_of_a_newer_version_is_passed_over() -> None:
    assert parse_router({**router(expert("base", mood="sunny")), "later": 1}).live[0].name == "base"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (router(expert("base"), expert("base")), "two experts are named 'base'"),
        (
            router(expert("base"), fallback="nobody"),
            r"fallback 'nobody' is no live expert; choose one of: base",
        ),
        (router(expert("base", state="draining")), "choose one of: none"),
        (router(expert("base"), threshold=1.5), "threshold 1.5 is outside 0..1"),
        (router(expert("base"), expert("auto")), "and not 'auto'"),
        (router(expert("base"), expert("new\nline")), "a name is 1 to 64"),
        (router(expert("base", model_key="../x")), r"model_key '\.\./x' is not 16 to 64 hex"),
        (router(expert("base", engine={"max_model_len": 0})), "below 1 token"),
        (
            router(expert("base"), expert("t", ADAPTER, engine={"max_model_len": 9})),
            "no engine.max_lora_rank",
        ),
        (router(expert("base"), expert("t", ADAPTER, {"w": 1.5})), "weight 1.5 of keyword 'w'"),
        (router(expert("base", state="happy")), "experts.0.state"),
        ({"experts": []}, "policy: Field required|policy: Missing|policy"),
        ("{not json", "the whole file: Invalid JSON"),
        (b"\xff\xfe", "the whole file"),
    ],
)
def test_broken_routers_are_refused_with_place_and_rule(broken, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_router(broken, "router 12ab")
    assert str(caught.value).startswith("router 12ab: ")


def test_an_unknown_policy_names_the_supported_ones() -> None:
    with pytest.raises(ConfigError, match=r"'llm' is unknown. Supported: \['keyword'\]"):
        decide("x", kind="llm")


def test_territory_is_the_template_without_stop_words_and_numbers() -> None:
    keywords = territory_keywords(PROMPTS)
    assert set(keywords) >= {"turn", "order", "json", "keys", "name", "count", "item", "city", "reply"}
    assert not {"the", "with", "this", "only", "and", "elena", "4"} & set(keywords)
    assert keywords["json"] == 1.0


def test_territory_drops_what_the_background_has_too() -> None:
    keywords = territory_keywords(
        PROMPTS, background=["Reply in JSON.", "Reply briefly.", "Reply at length."]
    )
    assert "reply" not in keywords
    assert keywords["json"] == pytest.approx(2 / 3, abs=1e-4)


@pytest.mark.parametrize("prompts", [[], [""], ["the", "and", "7"], [f"word{n}" for n in range(9)]])
def test_prompts_without_common_words_have_no_keywords(prompts: list[str]) -> None:
    assert territory_keywords(prompts) == {}


@given(st.lists(st.text(max_size=60), min_size=1, max_size=8), st.integers())
def test_territory_depends_on_no_order_and_routes_home(prompts: list[str], seed: int) -> None:
    keywords = territory_keywords(prompts)
    shuffled = random.Random(seed).sample(prompts, len(prompts))
    assert territory_keywords(shuffled) == keywords
    assert all(0.0 < weight <= 1.0 for weight in keywords.values())
    if keywords:
        decision = decide("\n".join(prompts), expert("tuned", ADAPTER, keywords))
        assert decision.chosen == "tuned"
        assert decision.scores["tuned"] == 1.0


@given(st.text())
def test_every_text_gets_a_live_expert(text: str) -> None:
    assert decide(text, expert("tuned", ADAPTER, {"order": 1.0})).chosen in {"base", "tuned"}


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([], ()),
        ([{"role": "system", "content": "s"}], ()),
        ([{"role": "user", "content": "one"}, {"role": "assistant", "content": "a"}], ("one",)),
        ([{"role": "user", "content": "one"}, {"role": "user", "content": "two"}], ("one", "two")),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            ("a\nb",),
        ),
        ([{"role": "user", "content": None}], ("",)),
    ],
)
def test_the_users_turns(messages, turns: tuple[str, ...]) -> None:
    assert user_turns(messages) == turns


def test_a_huge_text_is_read_at_both_ends() -> None:
    found = words("first " + "x " * MAX_TEXT_CHARS + "last")
    assert {"first", "last"} <= found
