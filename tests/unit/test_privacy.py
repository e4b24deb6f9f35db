"""What is said to a router stays out of its logs, and Ray's token out of other users' reach."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from actors.session import _protect_token
from largeforge_ray.models.hardware import engine_args
from serve_apps.openai_errors import ReplyHead, expert_unavailable, queue_full
from tests.unit._front import CHAT, client, completion

SECRET = "zanzibar"
SCRIPTS: dict[str, tuple[Any, ...]] = {
    "an answer": (ReplyHead(200), completion(f"{SECRET}!")),
    "a full engine": (queue_full(4, 4),),
    "no engine": (expert_unavailable("base"),),
    "a fault of ours": (ValueError("unexpected"),),
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_no_log_line_holds_a_word_of_prompt_or_answer(what: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    http, engine = client(*SCRIPTS[what])
    for model in ("auto", "base", SECRET):
        prompt = f"order: 4 lamps as json for {SECRET}"
        http.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": prompt}]})
    assert len(engine.asked) == 2
    ours = [record for record in caplog.records if record.name == "ray.serve"]
    assert any("routed to expert=" in record.getMessage() for record in ours)
    formatted = "\n".join(logging.Formatter().format(record) for record in ours)
    assert SECRET not in formatted


def test_an_engine_is_told_to_log_no_requests(tmp_path: Path) -> None:
    assert engine_args(tmp_path, max_model_len=256)["enable_log_requests"] is False


def test_rays_token_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _protect_token()  # there is none yet
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    _protect_token()
    assert token.stat().st_mode & 0o777 == 0o600
