"""A process's connection to Ray: join a cluster or start one, stop only what was started, end politely."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors import ray_messages
from largeforge_ray.errors import ForgeError, ResourceError

QUIET_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
"""Settings that must be in place before the libraries are imported; a user's own values win."""


class Session:
    """A connection to Ray that is made when it is first needed."""

    def __init__(self, say: Callable[[str], None]) -> None:
        from largeforge_ray.models.hardware import library_env

        for name, value in (QUIET_ENV | library_env()).items():
            os.environ.setdefault(name, value)
        if os.environ.get("RAY_ADDRESS"):
            send_token()
        self._say = say
        self.started_here = False
        self.connected = False

    def connect(self) -> None:
        """Join the cluster named by RAY_ADDRESS, or start a local one with a loopback dashboard.

        Raises:
            ResourceError: RAY_ADDRESS is set and no cluster answers there.
        """
        if self.connected:
            return
        import ray

        if ray.is_initialized():
            self.connected = True
            return
        address = os.environ.get("RAY_ADDRESS")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not address:
            options |= {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            _knock(address)
            context = ray.init(address=address or "local", **options)
        except OSError as error:
            raise ResourceError(
                f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; start it, correct the address or "
                "unset it; if it asks for a token, put that into ~/.ray/auth_token, mode 600"
            ) from None
        self.connected, self.started_here = True, not address
        # Ray takes SIGTERM for itself, prints a stack trace and ends without cleaning up; take it back.
        signal.signal(signal.SIGTERM, on_sigterm)
        ray_messages.tell(self._say)
        _protect_token()
        for name in ("ray.data", "ray.train", "ray.serve", "ray.tune"):
            # Their own progress goes to their log files, where the dashboard shows it.
            logging.getLogger(name).setLevel(logging.ERROR)
        where = f"joined the Ray cluster at {address}" if address else "started a local Ray"
        self._say(f"{where}, dashboard: http://{context.dashboard_url}")

    def close(self) -> None:
        """Disconnect; a local Ray that this session started is stopped."""
        if self.started_here:
            import ray

            ray.shutdown()
        self.connected = self.started_here = False


def _knock(address: str | None) -> None:
    """Raise ``OSError`` if nothing listens at ``host:port``: Ray itself tries for two minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


def send_token() -> None:
    """Have Ray send its token if there is one; by itself it sends none to a cluster that it has not started.
    It is read when ray is imported."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or _token_file().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _protect_token() -> None:
    """Ray leaves the token it makes for a new cluster readable by every user of the machine."""
    token = _token_file()
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


@contextmanager
def ray_session(say: Callable[[str], None]) -> Iterator[Session]:
    session = Session(say)
    try:
        yield session
    finally:
        session.close()


AGAIN = "interrupted; run the same command again to go on where it stopped"


@contextmanager
def polite_exit(interrupted: str = AGAIN) -> Iterator[None]:
    """A ``ForgeError`` becomes one message and exit code 1, Ctrl-C and SIGTERM clean up and become 130."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell starts background jobs with SIGINT ignored; whoever sends one all the same means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except ForgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _interrupt(*_: Any) -> None:
    """A job that is stopped must not leave processes."""
    raise KeyboardInterrupt
