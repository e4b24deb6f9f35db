"""Routing by meaning: the encoder, what is distilled from it, and territories learnt from prompts alone."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest

from largeforge_ray.errors import ConfigError, ModelError
from largeforge_ray.routing import Observation, Policies, parse_router
from largeforge_ray.routing.embedding import MAX_CHARS, Embedding, distil
from largeforge_ray.routing.encoder import Encoder
from largeforge_ray.routing.features import words
from largeforge_ray.routing.hybrid import HybridScorer
from largeforge_ray.routing.keyword import KeywordScorer
from largeforge_ray.routing.neural import FEWEST, Background, NeuralScorer
from largeforge_ray.routing.policies import save_background
from tests.unit._bert import SUBJECTS, tiny_bert
from tests.unit.test_routing import ADAPTER, expert, router


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def folder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router artifact's: the embedding and the background."""
    made = tmp_path_factory.mktemp("router")
    distil(Encoder(bert), 8, made)
    prompts = [(name, prompt) for name in SUBJECTS for prompt in prompts_of(name, 20, seed=1)]
    vectors = Embedding(made).embed_all([prompt for _, prompt in prompts])
    save_background(Background(tuple(name for name, _ in prompts), vectors), made)
    return made


def prompts_of(subject: str, number: int, seed: int = 0) -> list[str]:
    rng = random.Random(f"{subject} {seed}")
    return [" ".join(rng.choices(SUBJECTS[subject], k=6)) for _ in range(number)]


def territory(subject: str, number: int = 16, **more) -> dict:
    prompts = {"territory": {"prompts": prompts_of(subject, number), "keywords": {}}}
    return expert(subject, more.pop("adapter", ADAPTER), **prompts | more)


def decide(folder: Path, text: str, *experts: dict, kind: str = "neural", **policy):
    table = parse_router(router(expert("base"), *experts, kind=kind, **{"threshold": 0.6} | policy))
    return Policies(folder).build(table).decide(Observation("r", (text,)))


def test_the_encoder_computes_what_transformers_does(bert: Path) -> None:
    import torch
    import transformers

    model = transformers.BertModel.from_pretrained(bert).eval()
    encoder = Encoder(bert)
    texts = ["ship lamps", "add numbers plus minus equals", "", "reef " * 300]
    made = encoder.embed_all(texts)
    for text, vector in zip(texts, made, strict=True):
        ids = torch.tensor([encoder.tokenizer.encode(text).ids])
        with torch.no_grad():
            state = model(ids).last_hidden_state.mean(1)[0].numpy()
        np.testing.assert_allclose(vector, state / np.linalg.norm(state), atol=1e-5)
        np.testing.assert_allclose(encoder.embed(text), vector, atol=1e-6)


def test_an_encoder_of_another_kind_is_refused(bert: Path, tmp_path: Path) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = (tmp_path / "config.json").read_text().replace('"gelu"', '"relu"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match="bert with relu, and encoders are BERT models with gelu"):
        Encoder(tmp_path)


def test_a_static_embedding_keeps_what_is_alike_together(folder: Path) -> None:
    embedding = Embedding(folder)
    orders, sums = (embedding.embed_all(prompts_of(name, 10)) for name in ("orders", "sums"))
    assert np.allclose(np.linalg.norm(orders, axis=1), 1.0, atol=1e-5)
    assert (orders @ orders.T).min() > (orders @ sums.T).max()
    assert not embedding.embed("").any()
    assert embedding.embed_all([]).shape[0] == 0


def test_a_long_text_is_read_at_both_ends(folder: Path) -> None:
    embedding = Embedding(folder)
    middle = "waves " * MAX_CHARS
    vector = embedding.embed(f"{'ship ' * MAX_CHARS}{middle}{'ship ' * MAX_CHARS}")
    assert vector @ embedding.embed("ship") == pytest.approx(1.0, abs=1e-3)


def test_unseen_prompts_go_to_the_expert_whose_training_prompts_they_are_like(folder: Path) -> None:
    experts = territory("orders"), territory("sums")
    for subject in ("orders", "sums"):
        made = [decide(folder, text, *experts) for text in prompts_of(subject, 40, seed=2)]
        assert {decision.policy for decision in made} == {"neural"}
        chosen = [decision.chosen for decision in made]
        assert set(chosen) <= {subject, "base"}
        assert chosen.count(subject) >= 34
    for text in prompts_of("seas", 20, seed=2):
        decision = decide(folder, text, *experts)
        assert (decision.chosen, decision.fell_back) == ("base", True)


def test_a_new_expert_needs_no_training_and_no_second_reading_of_the_files(folder: Path) -> None:
    policies = Policies(folder)
    old = router(expert("base"), territory("orders"), kind="neural", threshold=0.6)
    new = router(expert("base"), territory("orders"), territory("seas"), kind="neural", threshold=0.6)
    asked = [Observation("r", (text,)) for text in prompts_of("seas", 20, seed=3)]
    assert {policies.build(parse_router(old)).decide(one).chosen for one in asked} == {"base"}
    policy = policies.build(parse_router(new))
    assert [policy.decide(one).chosen for one in asked].count("seas") >= 17


def test_fewer_prompts_than_show_how_alike_they_are_score_nothing(folder: Path) -> None:
    text = prompts_of("orders", 1, seed=2)[0]
    assert decide(folder, text, territory("orders", FEWEST - 1)).chosen == "base"
    assert decide(folder, text, territory("orders", FEWEST)).chosen == "orders"


def test_a_reason_names_numbers_and_no_word_of_the_prompt(folder: Path) -> None:
    decision = decide(folder, "ship stools mugs", territory("orders"))
    assert re.fullmatch(r"similarity \d\.\d\d to the prompts of 'orders'", decision.reason)
    assert not {"ship", "stools", "mugs"} & words(decision.reason)


class Fixed:
    """A scorer with given scores."""

    def __init__(self, **scores: float) -> None:
        self.name, self._scores = "fixed", scores

    def score(self, text: str):
        return self._scores, lambda expert: f"fixed {expert}"

    def knows(self, expert: str) -> bool:
        return expert != "no_keywords"


@pytest.mark.parametrize(
    ("keyword", "neural", "scores"),
    [
        ({"a": 0.81, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.81, "b": 0.0}),
        ({"a": 0.8, "b": 0.0}, {"a": 0.0, "b": 0.91}, {"a": 0.0, "b": 0.91}),
        ({"a": 0.8, "b": 0.2}, {"a": 0.2, "b": 0.9}, {"a": 0.5, "b": 0.55}),
        ({"a": 0.8, "b": 0.2}, {"a": 0.1, "b": 0.59}, {"a": 0.1, "b": 0.59}),
        ({"a": 0.4, "no_keywords": 0.0}, {"a": 0.6, "no_keywords": 0.7}, {"a": 0.5, "no_keywords": 0.7}),
    ],
    ids=["keywords are sure", "meaning is sure", "blended", "neither", "nothing to blend with"],
)
def test_hybrid_lets_the_sure_one_speak_and_blends_in_between(keyword, neural, scores) -> None:
    found, why = HybridScorer(Fixed(**keyword), Fixed(**neural)).score("text")
    assert found == pytest.approx(scores)
    assert why(next(iter(scores)))


def test_hybrid_finds_a_territory_by_either(folder: Path) -> None:
    by_word = expert("forms", ADAPTER, {"tax": 1.0, "form": 1.0})
    both = by_word, territory("orders")
    assert decide(folder, "tax form", *both, kind="hybrid").chosen == "forms"
    assert decide(folder, "ship stools mugs order", *both, kind="hybrid").chosen == "orders"
    assert decide(folder, "coral reef", *both, kind="hybrid").chosen == "base"


def test_the_encoder_itself_can_be_asked(bert: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder").symlink_to(bert)
    prompts = [(name, prompt) for name in SUBJECTS for prompt in prompts_of(name, 20, seed=1)]
    vectors = Encoder(bert).embed_all([prompt for _, prompt in prompts])
    save_background(Background(tuple(name for name, _ in prompts), vectors), tmp_path)
    chosen = [decide(tmp_path, text, territory("orders")).chosen for text in prompts_of("orders", 20, seed=2)]
    assert chosen.count("orders") >= 17


def test_a_policy_without_its_files_is_refused_with_what_there_is(folder: Path) -> None:
    table = parse_router(router(expert("base")))
    assert Policies().kinds == ("keyword",)
    assert Policies(folder).kinds == ("keyword", "neural", "hybrid")
    with pytest.raises(ConfigError, match=r"'neural' needs what a router stage learns.*\['keyword'\]"):
        Policies().build(table, "neural")
    with pytest.raises(ConfigError, match="'learned' needs what a router stage learns"):
        Policies(folder).build(table, "learned")
    with pytest.raises(ConfigError, match="'best' is unknown"):
        Policies(folder).build(table, "best")


def test_a_kind_asked_for_by_name_has_its_own_threshold(folder: Path) -> None:
    policies, table = Policies(folder), parse_router(router(expert("base"), threshold=0.1))
    assert policies.build(table).config.threshold == 0.1
    assert policies.build(table, "keyword").config.threshold == 0.1
    assert policies.build(table, "neural").config.threshold == 0.6


def test_keywords_are_found_in_scripts_without_spaces() -> None:
    orders = KeywordScorer(parse_router(router(expert("base"), expert("o", ADAPTER, {"订单": 1.0}))).live)
    assert orders.score("请把这个订单转换成JSON")[0]["o"] == 1.0
    assert orders.score("请写一首诗")[0]["o"] == 0.0
    assert {"json", "注文", "です"} <= words("注文JSONです")
    assert words("한국어 주문") == {"한국어", "주문"}


def test_neural_scores_stay_between_nought_and_one_for_experts_without_a_background(folder: Path) -> None:
    embed = Embedding(folder)
    nothing = Background((), np.zeros((0, 8), np.float32))
    table = parse_router(router(expert("base"), territory("orders")))
    scores, _ = NeuralScorer(table.live, embed, nothing).score("ship lamps stools city order mugs")
    assert 0.5 < scores["orders"] <= 1.0
    assert scores["base"] == 0.0
