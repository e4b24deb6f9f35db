"""The ``largeforge`` command as a user types it, in the test's own process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from train_jobs.cli import main

Typed = Callable[..., tuple[int, str, str]]


@contextmanager
def command(capsys: pytest.CaptureFixture[str], *first: str) -> Iterator[Typed]:
    """Runs a command whose first words are given; its exit code and what stands on standard output and error.

    It takes SIGTERM for itself, and gives it back at the end.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            main([*first, *words])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    yield run
    signal.signal(signal.SIGTERM, on_sigterm)
