"""A trial's process: it only forwards. It asks its pack for the next measurement, hands Tune the result
and keeps the checkpoint, with the way by which its weights came about.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge_ray.sweep.files import read_files, write_files

if TYPE_CHECKING:
    from largeforge_ray.config.sweeping import SweepStage

TRIAL_FILE = "trial.json"
"""In a checkpoint, beside the lane's files: whose it is, its settings, its step and its history."""


def short_name(trial_id: str) -> str:
    """A trial's number within its sweep, without what tells sweeps apart."""
    return trial_id.rpartition("_")[2]


def history_from(kept: Mapping[str, Any], trial: str) -> list[dict[str, Any]]:
    """The history of ``trial`` as it goes on from a checkpoint: whose weights it took, each until which step.

    Of its own checkpoint that is what was kept; another trial's way becomes the beginning of its own.
    """
    history: list[dict[str, Any]] = list(kept["history"])
    if kept["trial"] != trial:
        history.append({"step": kept["step"], "point": kept["point"], "trial": kept["trial"]})
    return history


def trial_class() -> Any:
    """Tune's ``Trainable`` around one lane of a pack."""
    import ray
    from ray import tune

    class LaneTrial(tune.Trainable):
        def setup(self, config: dict[str, Any], **given: Any) -> None:
            self._hosts: list[Any] = given["hosts"]
            self._stage: SweepStage = given["stage"]
            self._board = given["board"]
            self._enter(config)

        def _enter(self, config: dict[str, Any]) -> None:
            self._point = dict(config["point"])
            self._training = self._stage.trial(self._point)
            self._files: dict[str, bytes] | None = None
            self._step = 0
            self._history: list[dict[str, Any]] = []
            self._trial = short_name(self.trial_id)
            # In turn: trials that start together would all find the same pack the emptiest.
            self._host = self._hosts[int(self._trial) % len(self._hosts)]
            # A new name each time, or what the trial's last process still tells the pack would hit this one.
            self._name = f"lane{secrets.token_hex(6)}"
            ray.get(self._host.join.remote(self._name, self._training))

        def step(self) -> dict[str, Any]:
            made: dict[str, Any]
            try:
                made, self._files = ray.get(self._host.advance.remote(self._name))
            except KeyError:
                # The pack was restarted: bring it what this trial last kept.
                ray.get(self._host.join.remote(self._name, self._training, self._files))
                made, self._files = ray.get(self._host.advance.remote(self._name))
            self._step = made["step"]
            if self._board is not None:
                note = {"trial": self._trial, "point": self._point, "history": self._history}
                self._board.post.remote(made | note)
            return made | {"point": json.dumps(self._point)}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            write_files(Path(checkpoint_dir), self._files or {})
            kept = {"trial": self._trial, "point": self._point, "step": self._step, "history": self._history}
            (Path(checkpoint_dir) / TRIAL_FILE).write_text(json.dumps(kept), encoding="utf-8")

        def load_checkpoint(self, checkpoint_dir: Any) -> None:
            folder = Path(checkpoint_dir)
            kept = json.loads((folder / TRIAL_FILE).read_text(encoding="utf-8"))
            # Population based training hands a trial the checkpoint of another one.
            self._step, self._history = kept["step"], history_from(kept, self._trial)
            self._files = read_files(folder)
            ray.get(self._host.join.remote(self._name, self._training, self._files))

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self._enter(new_config)
            return True

        def cleanup(self) -> None:
            ray.get(self._host.leave.remote(self._name))

    return LaneTrial
