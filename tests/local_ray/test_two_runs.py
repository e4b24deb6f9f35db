"""Two runs of one manifest on one store at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from largeforge_ray.store import open_store
from tests.local_ray.conftest import largeforge, small_manifest
from tests.unit._tiny import tiny_model

pytestmark = pytest.mark.timeout(240)


def test_the_model_is_converted_once_and_both_runs_stand_on_it(tmp_path: Path) -> None:
    path = small_manifest(tmp_path, prompts=12)
    tiny_model(tmp_path)
    manifest = yaml.safe_load(path.read_text()) | {"model": {"source": "tiny", "max_model_len": 512}}
    manifest["stages"] = [{"kind": "model", "name": "teacher", "source": "tiny"}]
    path.write_text(yaml.safe_dump(manifest))
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: largeforge("run", str(path), cwd=tmp_path, timeout=200), range(2)))
    assert [run.code for run in runs] == [0, 0], runs
    assert sorted("teacher    cached" in run.out for run in runs) == [False, True]
    store = open_store(tmp_path / "forge")
    assert sorted(a.name for a in store.artifacts()) == ["teacher"]
    store.fetch(store.get("teacher"))
