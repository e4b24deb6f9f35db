"""Where a wall cannot be raised nothing runs, and what is missing is named with what allows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from largeforge_ray.errors import ResourceError
from largeforge_ray.teach import sandbox
from largeforge_ray.teach.sandbox import available, run_code


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ("jail.prctl('', jail.PR_SET_NO_NEW_PRIVS, 1); jail.filter_calls()", "unshare: Operation not perm"),
        ("jail.NUMBERS = {}", "system calls of"),
        ("jail.build_root = lambda job: jail.mount('x', '/proc', 'no such', 0)", "mount /proc: No such"),
        ("jail.filter_calls = lambda: jail.check('filter', -1)", "filter"),
        ("jail.run_init = lambda job: 1 / 0", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_without_a_wall_nothing_runs_and_the_missing_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str, step: str
) -> None:
    if (missing := available()) and os.environ.get("CI") != "true":
        pytest.skip(missing)
    script = tmp_path / "script.py"
    folder = str(sandbox.JAIL.parent)
    script.write_text(f"import sys; sys.path.insert(0, {folder!r})\nimport jail\n{change}\njail.main()\n")
    monkeypatch.setattr(sandbox, "JAIL", script)
    mark = tmp_path / "ran"
    with pytest.raises(ResourceError, match=f"cannot be contained here: .*{step}.*; in a container allow"):
        run_code(f"open({str(mark)!r}, 'w')")
    assert not mark.exists()


def test_a_switch_that_is_off_is_named_with_the_command_that_sets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    switch = tmp_path / "max_user_namespaces"
    monkeypatch.setattr(sandbox, "SWITCHES", {str(switch): ("0", "sysctl -w this=1")})
    monkeypatch.setattr(sandbox, "_call_jail", lambda program, limits: {"refused": "unshare"})
    for value, fix in (("0\n", "sysctl -w this=1"), ("9\n", "in a container allow user namespaces")):
        switch.write_text(value)
        with pytest.raises(ResourceError, match=fix):
            run_code("pass")
