"""The tutorial, as a reader follows it: its files saved, its commands typed in their order."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.contracts.test_docs import TUTORIAL, blocks
from tests.local_ray.conftest import ENVIRONMENT, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SERVE = """\
largeforge serve &
server=$!
trap 'kill $server; wait $server || true' EXIT
until curl --silent --fail http://127.0.0.1:8000/ready; do kill -0 $server; sleep 1; done
"""
"""In another terminal, says the page."""


def script() -> str:
    """What a reader types; each step is announced by a line of its own."""
    made = ["set -e"]
    for block in blocks(TUTORIAL):
        made.append(f"echo '## line {block.line}'")
        if block.marked:
            continue
        if block.language == "yaml":
            made.append(f"cat >expert.yaml <<'END'\n{block.text}END")
        elif block.language == "bash":
            made.append(SERVE if block.text.strip() == "largeforge serve" else block.text)
    return "\n".join(made)


def test_the_tutorial_leads_where_it_says(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=ROOT,
        env=ENVIRONMENT | {"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"^  live +done", done.stdout, re.MULTILINE)
    assert re.findall(r"^x-largeforge-expert: (\S+)", done.stdout, re.MULTILINE) == ["clerk", "base"]
    assert re.search(r"^adapter clerk .*\n├─ dataset rows", done.stdout, re.MULTILINE)
