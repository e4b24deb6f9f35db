"""Connect to Ray, and stop only what was started here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from largeforge_ray.errors import ResourceError

QUIET_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Settings that must be in place before Ray is imported; a user's own values win."""


class Session:
    """A connection to Ray that is made when it is first needed."""

    def __init__(self, say: Any) -> None:
        self._say = say
        self.started_here = False
        self.connected = False

    def connect(self) -> None:
        """Join the cluster named by RAY_ADDRESS, or start a local one with a loopback dashboard."""
        if self.connected:
            return
        for name, value in QUIET_ENV.items():
            os.environ.setdefault(name, value)
        import ray

        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": True,
        }
        try:
            if ray.is_initialized():
                self.connected = True
                return
            if address:
                context = ray.init(address=address, **options)
            else:
                context = ray.init(
                    address="local", include_dashboard=True, dashboard_host="127.0.0.1", **options
                )
                self.started_here = True
        except ConnectionError as error:
            raise ResourceError(
                f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; start it, correct the address or unset it"
            ) from None
        self.connected = True
        quiet_ray()
        where = "started a local Ray" if self.started_here else f"joined the Ray cluster at {address}"
        self._say(f"{where}, dashboard: http://{context.dashboard_url}")

    def close(self) -> None:
        """Disconnect; a local Ray that this session started is stopped."""
        if self.connected and self.started_here:
            import ray

            ray.shutdown()
        self.connected = False


def quiet_ray() -> None:
    """Ray's own progress and warnings go to its log files, where the dashboard shows them."""
    for name in ("ray.data", "ray.train", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def ray_session(say: Any) -> Iterator[Session]:
    session = Session(say)
    try:
        yield session
    finally:
        session.close()
