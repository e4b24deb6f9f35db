"""Arguments of the application as a command line gives them, and which router is served without a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from click import ClickException

from largeforge_ray.config.speculation import Draft, Ngram
from largeforge_ray.errors import ConfigError, StoreError
from largeforge_ray.store import open_store
from serve_apps.forge import app, build_app, parse_args
from serve_apps.launch import newest_router


def test_settings_are_text_and_win_over_what_is_named() -> None:
    args = parse_args("routers=2", "request_timeout_s=1.5", "min_replicas=0", min_replicas=3, store="here")
    assert (args.routers, args.request_timeout_s, args.min_replicas, args.store) == (2, 1.5, 0, "here")


@pytest.mark.parametrize(
    ("text", "speculation"),
    [
        ("ngram", Ngram(kind="ngram")),
        ("{kind: ngram, num_speculative_tokens: 7}", Ngram(kind="ngram", num_speculative_tokens=7)),
        ('{"kind": "draft", "model": "student"}', Draft(kind="draft", model="student")),
    ],
)
def test_speculation_is_a_kind_or_yaml(text: str, speculation: object) -> None:
    assert parse_args(f"speculation={text}").speculation == speculation


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("routrs=2", "argument 'routrs' does not exist; did you mean 'routers'?"),
        ("zzz=2", "argument 'zzz' does not exist; there are: store, router, "),
        ("routers=two", "routers 'two': Input should be a valid integer"),
        ("routers", "routers '': "),
        ("port=99999999", "port '99999999': Input should be less than or equal to 65535"),
        ("speculation=ngrm", "'ngrm' found using 'kind' does not match any of the expected tags: 'ngram', "),
    ],
)
def test_a_wrong_setting_names_value_rule_and_fix(setting: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_args(setting)
    assert why in str(caught.value)


def _publish(folder: Path, kind: str, number: int, stage: str) -> str:
    """The key of an artifact that a stage of that kind made."""
    made, key = folder / f"{kind}{number}", f"{number:x}" * 64
    made.mkdir()
    (made / "router.json").write_text("{}")
    open_store(folder / "forge").publish(kind, key, made.name, (), {"kind": stage}, made)
    return key


def test_the_newest_promoted_router_is_served_and_else_the_newest(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no router"):
        newest_router(str(tmp_path / "forge"))
    only = _publish(tmp_path, "router", 1, "router")
    assert newest_router(str(tmp_path / "forge")) == only
    first, second = (_publish(tmp_path, "router", n, "promote") for n in (2, 3))
    _publish(tmp_path, "router", 4, "router")
    assert newest_router(str(tmp_path / "forge")) == second != first


def test_serve_builds_the_application_from_a_dictionary(tmp_path: Path) -> None:
    """As ``serve run`` and ``serve deploy`` do, which look at what the function takes (Ray 2.60.0)."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    _publish(tmp_path, "dataset", 5, "dataset")
    with pytest.raises(ClickException, match="is of kind dataset; name a router"):
        build(app, {"store": str(tmp_path / "forge"), "router": "dataset5", "port": "8000"})
    with pytest.raises(ClickException, match="did you mean 'routers'"):
        build(app, {"routrs": 2})


def test_what_is_no_router_is_not_served(tmp_path: Path) -> None:
    _publish(tmp_path, "dataset", 5, "dataset")
    with pytest.raises(ConfigError, match=r"\('dataset5'\) is of kind dataset; name a router"):
        build_app(parse_args(store=str(tmp_path / "forge"), router="dataset5"))
