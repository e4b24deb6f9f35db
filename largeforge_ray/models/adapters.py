"""PEFT adapters on a transformers model of this process, one of which is in use at a time."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from largeforge_ray.errors import ModelError

WEIGHTS = "adapter_model.safetensors"


class Adapters:
    """What is loaded onto ``model``, by handles."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._numbers = itertools.count()

    def load(self, folder: Path) -> str:
        """Put a PEFT folder's adapter on the model. Raises ``ModelError`` with what does not fit."""
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"the folder has no {WEIGHTS}, as PEFT saves it with safetensors")
        # A folder's name may hold a dot, and a module's may not.
        handle = f"adapter_{next(self._numbers)}"
        try:
            found = self._model.load_adapter(str(folder), adapter_name=handle)
            missing = [key for key in found.missing_keys if f".{handle}." in key]
            if wrong := sorted({*missing, *found.unexpected_keys, *map(str, found.mismatched_keys)}):
                raise ValueError(f"{len(wrong)} weights do not fit the model, such as {wrong[0]}")
        except Exception as error:  # transformers and PEFT raise whatever a malformed folder leads them to
            if handle in getattr(self._model, "peft_config", {}):
                self.delete(handle)
            raise ModelError(str(error)) from error
        return handle

    def delete(self, handle: str) -> None:
        """Take it off the model."""
        self._model.delete_adapter(handle)

    def use(self, handle: str | None) -> None:
        """Compute with this one from now on; with None, without any."""
        if handle is not None:
            self._model.set_adapter(handle)
            self._model.enable_adapters()
        elif getattr(self._model, "peft_config", {}):
            self._model.disable_adapters()
