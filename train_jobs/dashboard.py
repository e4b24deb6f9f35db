"""A cluster's dashboard, the one address that jobs are sent to and a cluster is looked at through."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import click

from actors.session import send_token
from largeforge_ray.errors import ConfigError, ForgeError, ResourceError, StageError

ADDRESS = click.option(
    "--address",
    default="http://127.0.0.1:8265",
    show_default=True,
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    help="The cluster's dashboard.",
)


def knock(address: str) -> None:
    """Raise ``ConfigError`` for what is no URL and ``OSError`` if nothing listens there.

    Ray's clients take it next. They let RAY_ADDRESS, which is another port, win over their argument, and
    RAY_API_SERVER_ADDRESS over both.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"address '{address}' is no URL; give the dashboard's, as http://127.0.0.1:8265")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname, port), timeout=5).close()
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    send_token()


def job_client(address: str) -> Any:
    """Ray's ``JobSubmissionClient``, which finds the token as all of Ray does."""
    knock(address)
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(address)


@contextmanager
def explained(address: str) -> Iterator[None]:
    """What Ray's clients raise, as a ``ForgeError`` of one line that names the cause and the fix."""
    try:
        yield
    except ForgeError:
        raise
    except OSError as error:  # those of requests are, too
        raise ResourceError(
            f"no Ray cluster answers at {address}: {reason(error)}; start one with `ray start --head`, open "
            "an SSH tunnel to its dashboard, or give --address"
        ) from None
    except RuntimeError as error:
        raise StageError(f"{address} refused: {last_line(str(error))}") from None
    except Exception as error:
        from ray.exceptions import AuthenticationError

        if isinstance(error, AuthenticationError):
            raise ConfigError(
                f"{address} wants a token: {error.message.splitlines()[0].rstrip('.')}; export "
                "RAY_AUTH_MODE=token and put the cluster's token into ~/.ray/auth_token, mode 600"
            ) from None
        raise


def reason(error: BaseException) -> str:
    """An error's innermost cause in a few words."""
    # A Ctrl-C that was being handled is no cause.
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    return str(getattr(error, "strerror", None) or last_line(str(error) or type(error).__name__))


def last_line(text: str) -> str:
    """The last line that says something: what comes from Ray's side has a trace before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    return lines[-1] if lines else text
