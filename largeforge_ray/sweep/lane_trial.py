"""A trial's process: it only forwards. It asks its pack for the next measurement, hands Tune the result
and keeps the checkpoint, with the way by which its weights came about.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge_ray.sweep.files import read_files, write_files

if TYPE_CHECKING:
    from largeforge_ray.config.sweeping import SweepStage

TRIAL_FILE = "trial.json"
"""In a checkpoint, beside the lane's files: whose it is, its settings, its step and its history."""
PACKS = "packs"
"""What the board's pin with the packs is called: actor handles by number."""
LOOK_S = 1.0
"""Between looks for a pack while there is none."""


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


class Berth:
    """A trial's place in one of the packs that are on the board, from which they may go."""

    def __init__(self, board: Any, turn: int) -> None:
        self._board, self._turn, self._number = board, turn, 0

    def take(self) -> Any:
        """A pack's handle; waits for one while all have made room for others."""
        while not (packs := self._packs()):
            time.sleep(LOOK_S)
        self._number = self._mine(packs)
        return packs[self._number]

    def is_another(self) -> bool:
        """Whether another pack is this trial's by now, as some have come or gone."""
        packs = self._packs()
        return bool(packs) and self._mine(packs) != self._number

    def _mine(self, packs: Mapping[int, Any]) -> int:
        # In turn: trials that start together would all find the same pack the emptiest.
        return sorted(packs)[self._turn % len(packs)]

    def is_gone(self) -> bool:
        """Whether the pack has made room, so that its end is no failure."""
        return self._number not in self._packs()

    def _packs(self) -> dict[int, Any]:
        import ray

        packs: dict[int, Any] = ray.get(self._board.pinned.remote(PACKS))
        return packs


def trial_class() -> Any:
    """Tune's ``Trainable`` around one lane of a pack."""
    import ray
    from ray import tune
    from ray.exceptions import RayActorError

    class LaneTrial(tune.Trainable):
        def setup(self, config: dict[str, Any], **given: Any) -> None:
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
            self._berth = Berth(self._board, int(self._trial))
            # A new name each time, or what the trial's last process still tells the pack would hit this one.
            self._name = f"lane{secrets.token_hex(6)}"
            self._join()

        def _join(self) -> None:
            """Bring a pack what this trial last kept."""
            while True:
                self._pack = self._berth.take()
                try:
                    ray.get(self._pack.join.remote(self._name, self._training, self._files))
                except RayActorError:
                    if not self._berth.is_gone():
                        raise
                else:
                    return

        def step(self) -> dict[str, Any]:
            made: dict[str, Any]
            if self._berth.is_another():
                self.cleanup()
                self._join()
            while True:
                try:
                    made, self._files = ray.get(self._pack.advance.remote(self._name))
                except KeyError:
                    pass  # the pack was restarted
                except RayActorError:
                    if not self._berth.is_gone():
                        raise
                else:
                    break
                self._join()
            self._step = made["step"]
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
            self._join()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.cleanup()
            self._enter(new_config)
            return True

        def cleanup(self) -> None:
            with suppress(RayActorError):  # a pack that has gone has left the trial
                ray.get(self._pack.leave.remote(self._name))

    return LaneTrial
