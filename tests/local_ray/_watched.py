"""``largeforge run`` with an engine that notes what it finished, and whose core dies of some prompts.

python -m tests.local_ray._watched MANIFEST NOTES

Each engine's process has a file of its own in the folder NOTES.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from actors.engine import RESTARTS, EngineActor
from largeforge_ray.models.engine import Engine
from largeforge_ray.models.supervised import SupervisedEngine
from largeforge_ray.types import GenerateRequest, Generation

POISON = "poison"


class WatchedEngine(Engine):
    """Of a prompt that begins with ``POISON`` its core is killed, for real."""

    notes: Path

    async def _one(self, request: GenerateRequest) -> Generation:
        if request.messages[-1]["content"].startswith(POISON):
            for child in psutil.Process().children():
                # One that dies at this moment has no command line any more.
                with suppress(psutil.Error, ProcessLookupError):
                    if "EngineCore" in " ".join(child.cmdline()):
                        os.kill(child.pid, signal.SIGKILL)
        made = await super()._one(request)
        if made.error is None:
            with (self.notes / str(os.getpid())).open("a") as file:
                file.write(f"{made.request_id}\n")
        return made


class WatchedActor(EngineActor):
    def __init__(self, model_dir: str, max_model_len: int, notes: str) -> None:
        WatchedEngine.notes = Path(notes)
        WatchedEngine.notes.mkdir(exist_ok=True)
        handed = Path(tempfile.mkdtemp(prefix="largeforge-adapters-"))
        self._engine = SupervisedEngine(
            partial(WatchedEngine, model_dir, max_model_len=max_model_len, handed=handed)
        )


def main() -> None:
    import train_jobs.commands as commands
    from train_jobs.cli import polite_exit

    manifest, notes = sys.argv[1:]

    def start_engine(model_dir: str, *, max_model_len: int, **rest: Any) -> Any:
        import ray

        options = {"max_restarts": RESTARTS, "max_task_retries": RESTARTS, "max_concurrency": 1024}
        actor = ray.remote(WatchedActor).options(num_cpus=1, **options)
        return actor.remote(model_dir, max_model_len, notes)

    import actors

    actors.start_engine = start_engine
    with polite_exit():
        commands.run_manifest(Path(manifest), None)


if __name__ == "__main__":
    main()
