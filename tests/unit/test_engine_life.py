"""What an engine starts ends with it, even when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points

import psutil
import pytest

from largeforge_ray.models.engine_life import BOUND, die_with_parent
from largeforge_ray.models.hardware import engine_env

PARENT = """
import multiprocessing, time
from largeforge_ray.models.engine_life import die_with_parent

def child():
    die_with_parent()
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    print(process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("bound", [True, False])
def test_a_bound_engines_processes_die_with_it_and_others_are_left_alone(tmp_path, bound: bool) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    env = {k: v for k, v in os.environ.items() if k != BOUND} | ({BOUND: "1"} if bound else {})
    env["PYTHONPATH"] = os.getcwd()
    parent = subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone, _ = psutil.wait_procs([child], timeout=2)
    assert bool(gone) is bound
    if not bound:
        child.kill()


def test_the_process_that_starts_an_engine_is_not_bound_to_its_own_parent() -> None:
    die_with_parent()  # this process was started by no multiprocessing; else it would die with its shell


def test_vllm_finds_the_plugin_and_our_engines_ask_for_it() -> None:
    plugins = {point.name: point.value for point in entry_points(group="vllm.general_plugins")}
    assert plugins["largeforge"] == "largeforge_ray.models.engine_life:die_with_parent"
    assert engine_env()[BOUND] == "1"
