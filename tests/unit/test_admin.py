"""The admin API: its token, its refusals, and what it hands to the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from largeforge_ray.errors import ConfigError
from largeforge_ray.keyfile import hash_of, make_token, read_token
from largeforge_ray.promote.views import Entry
from largeforge_ray.routing.experts import EngineOptions, Expert, Price
from serve_apps.admin import Admin
from tests.unit._front import ScriptedEngine, app, told

TOKEN = "an admin token of some length"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
EXPERT = Expert("orders", "loading", "a" * 64, EngineOptions(512, 8), "b" * 64)


class Registered:
    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    async def propose(self, *given: Any) -> Entry:
        self.asked.append(("propose", *given))
        if given[0] == "broken":
            raise ConfigError("adapter broken has rank 64; train it again")
        return Entry(EXPERT, "preflight passed", 1.0)

    async def remove(self, *given: Any) -> Entry:
        self.asked.append(("remove", *given))
        return Entry(EXPERT, "it was removed", 1.0)

    async def history(self) -> list[Any]:
        return [Entry(EXPERT, "it came with the router", 1.0)]


def admin() -> tuple[TestClient, Registered]:
    registered = Registered()
    return TestClient(app(ScriptedEngine(), admin=Admin(registered, hash_of(TOKEN)))), registered


def test_proposing_hands_over_what_was_given_and_answers_with_the_entry() -> None:
    http, registered = admin()
    body = {"adapter": "b" * 16, "name": "orders", "price": {"per_1k_prompt": 1.0, "per_1k_completion": 2.0}}
    reply = http.post("/admin/experts", json=body, headers=HEADERS)
    assert reply.status_code == 202
    assert (reply.json()["expert"]["name"], reply.json()["reason"]) == ("orders", "preflight passed")
    assert registered.asked == [("propose", "b" * 16, "orders", Price(1.0, 2.0), "admin")]


def test_removing_and_history() -> None:
    http, registered = admin()
    assert http.delete("/admin/experts/orders", headers=HEADERS).status_code == 202
    assert registered.asked == [("remove", "orders", "admin")]
    assert (
        http.get("/admin/experts", headers=HEADERS).json()["data"][0]["reason"] == "it came with the router"
    )


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}],
)
def test_without_the_admin_token_nothing_is_done(headers: dict[str, str]) -> None:
    http, registered = admin()
    for method, path in (
        ("POST", "/admin/experts"),
        ("DELETE", "/admin/experts/orders"),
        ("GET", "/admin/x"),
    ):
        told(http.request(method, path, headers=headers), 401, "invalid_admin_token")
    assert registered.asked == []


def test_a_router_without_an_admin_token_has_no_admin_api() -> None:
    told(TestClient(app(ScriptedEngine())).get("/admin/experts", headers=HEADERS), 404, "unknown_path")


@pytest.mark.parametrize(
    ("body", "code", "why"),
    [
        (b"{", "invalid_json", "not JSON"),
        (b"{}", "invalid_value", "adapter: Field required"),
        (b'{"adapter": "x", "nmae": "y"}', "invalid_value", "nmae: Extra inputs"),
        (b'{"adapter": "x", "name": "a b"}', "invalid_value", "name: String should match"),
        (b'{"adapter": "broken"}', "refused", "has rank 64; train it again"),
    ],
)
def test_a_wrong_proposal_is_a_400_that_says_why(body: bytes, code: str, why: str) -> None:
    http, _ = admin()
    assert why in told(http.post("/admin/experts", content=body, headers=HEADERS), 400, code)["message"]


def test_other_paths_and_methods_are_refused() -> None:
    http, _ = admin()
    told(http.get("/admin/elsewhere", headers=HEADERS), 404, "unknown_path")
    told(http.put("/admin/experts", headers=HEADERS), 405, "method_not_allowed")


def test_a_token_file_is_the_owners_alone_and_not_short(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match="make one with"):
        read_token(file)
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == TOKEN
    with pytest.raises(ConfigError, match="File exists; remove it"):
        make_token(file)
    make_token(tmp_path / "made")
    assert len(read_token(tmp_path / "made")) == 43
    file.write_text("short")
    with pytest.raises(ConfigError, match="at least 16"):
        read_token(file)
