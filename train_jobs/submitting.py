"""`largeforge submit`: a manifest or a command as a Ray job, followed as if it ran here."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import click

from largeforge_ray.errors import ConfigError, ResourceError, StageError
from train_jobs.dashboard import ADDRESS, explained, job_client, last_line, reason

EXCLUDES = [".venv", ".git", "/forge"]
STOP_S = 30
"""What a stopped job has to end its processes before Ray kills them; Ray's own 3 s leave engines behind."""
PATIENCE_S = 120
RETRY_S = 2.0
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@click.command()
@ADDRESS
@click.option(
    "--working-dir",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path),
    help="What the job runs in; .venv, .git, forge and what .gitignore names stay here.",
)
@click.option("--store", help="Use this store instead of MANIFEST's.")
@click.option("--detach", is_flag=True, help="Print the job's id and leave it to itself.")
@click.option("--submission-id", metavar="ID", help="The job's id; of a job that is over, ID-2 and so on.")
@click.option("--env", multiple=True, metavar="NAME", help="Give the job this variable of yours.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="MANIFEST | -- COMMAND...")
def submit(words: tuple[str, ...], address: str, detach: bool, **options: Any) -> None:
    """Run MANIFEST, or a command of several words, as a job on a Ray cluster, and show its log.

    Exits with the job's own code: 0 done, 1 an error with its message, 130 stopped. Ctrl-C stops the job,
    unless --detach left it to itself; the same command again does only what is missing.

    \b
    largeforge submit manifest.yaml --store s3://bucket/forge
    largeforge submit -- python -m train_jobs.sft --config manifest.yaml --store s3://bucket/forge
    """
    job, address = prepared(words, environ=os.environ, **options), address.rstrip("/")
    with explained(address):
        client = job_client(address)
        name = start(client, job)
        if detach:
            click.echo(name)
            note(f"job {name} goes on by itself; {how_to(address, name)}")
            return
        note(f"job {name}: {address}/#/jobs/{name}; Ctrl-C stops it")
        try:
            details = follow(client, name, write)
        except KeyboardInterrupt:
            stop(client, name, address)
            raise
        code = exit_code(details)
    note(f"job {name} {details.status.lower()}, exit code {code}")
    sys.exit(code)


def prepared(
    words: Sequence[str],
    *,
    working_dir: Path,
    store: str | None,
    submission_id: str | None,
    env: Sequence[str],
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """The arguments of ``JobSubmissionClient.submit_job``. Raises ``ConfigError``; asks no cluster."""
    if not working_dir.is_dir():
        raise ConfigError(f"working dir '{working_dir}' is not a folder; give the one the job is to run in")
    if submission_id and not _ID.fullmatch(submission_id):
        raise ConfigError(f"submission id '{submission_id}' is not a plain name; use letters, digits, . _ -")
    given = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)} | environment(env, environ)
    return {
        "entrypoint": shlex.join(entrypoint(words, working_dir, store)),
        "submission_id": submission_id,
        "runtime_env": {"working_dir": str(working_dir), "excludes": EXCLUDES, "env_vars": given},
    }


def entrypoint(words: Sequence[str], working_dir: Path, store: str | None) -> list[str]:
    """The job's command. A single word is a manifest, which must be found there and keep what it makes."""
    if len(words) > 1:
        if store:
            raise ConfigError("--store goes with a MANIFEST; give the command its own --store")
        return list(words)
    from largeforge_ray.config import load_manifest

    manifest = Path(words[0])
    kept = store or load_manifest(manifest).store
    here = working_dir.resolve()
    if not manifest.resolve().is_relative_to(here):
        raise ConfigError(
            f"manifest '{manifest}' is outside the working dir {here}, which is all the job gets; "
            "move it there, or give --working-dir"
        )
    if "://" not in kept and not Path(kept).is_absolute():
        raise ConfigError(
            f"store '{kept}' is relative, and the job's folder is a copy that Ray removes; give --store a "
            f"URL, or a path that every node has, such as {Path(kept).resolve()}"
        )
    inside = manifest.resolve().relative_to(here).as_posix()
    return ["python", "-m", "train_jobs.run", "--manifest", inside, *(["--store", store] if store else [])]


def environment(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The named variables of ``environ``. Raises ``ConfigError`` for one that is missing, or a secret's."""
    for name in names:
        if any(part.removesuffix("S").endswith(SECRET) for part in name.upper().split("_")):
            raise ConfigError(
                f"--env {name} looks like a secret, and Ray shows a job's environment to all who see its "
                "dashboard; set it on the nodes, or keep it in a file there"
            )
        if name not in environ:
            raise ConfigError(f"--env {name}: there is no such variable; export it first")
    return {name: environ[name] for name in names}


def start(client: Any, job: dict[str, Any]) -> str:
    """Send the job and return its id; one of this id and command that is under way is not sent again."""
    wanted = job["submission_id"]
    if wanted:
        there = {each.submission_id: each for each in client.list_jobs() if each.submission_id}
        name = free_id(wanted, {name: each.status.is_terminal() for name, each in there.items()})
        if name in there:
            if there[name].entrypoint != job["entrypoint"]:
                raise ConfigError(
                    f"job '{name}' is under way and is another one: {there[name].entrypoint}; "
                    "give another --submission-id"
                )
            note(f"job {name} is under way already; following it")
            return str(name)
        if name != wanted:
            note(f"job {wanted} is over; going on where it stopped as {name}")
        job = job | {"submission_id": name}
    # What Ray says while it packs the folder is for its developers.
    logging.disable(logging.WARNING)
    try:
        return str(client.submit_job(**job))
    finally:
        logging.disable(logging.NOTSET)


def free_id(wanted: str, over: Mapping[str, bool]) -> str:
    """``wanted``, or the first of wanted-2, wanted-3 … that is new or names a job that is not over."""
    names = (wanted if number == 1 else f"{wanted}-{number}" for number in count(1))
    return next(name for name in names if not over.get(name, False))


class _Log:
    """A job's log as far as it was shown: after a broken connection it comes from its beginning again."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._shown = show, 0
        self.heard = time.monotonic()

    async def copy(self, chunks: AsyncIterator[str]) -> None:
        passed = 0
        async for chunk in chunks:
            self.heard = time.monotonic()
            if fresh := chunk[max(0, self._shown - passed) :]:
                self._show(fresh)
            passed += len(chunk)
            self._shown = max(self._shown, passed)


def follow(client: Any, job: str, show: Callable[[str], None]) -> Any:
    """Show a job's log as it comes and return its ``JobDetails`` once it is over.

    A connection that breaks is made again. Raises ``OSError`` or ``RuntimeError`` after 120 s without one.
    """
    from aiohttp import ClientError

    log = _Log(show)
    while True:
        try:
            asyncio.run(log.copy(client.tail_job_logs(job)))
            details = client.get_job_info(job)
            log.heard = time.monotonic()
            if details.status.is_terminal():
                return details
        except (OSError, RuntimeError, ClientError) as error:
            if time.monotonic() - log.heard > PATIENCE_S:
                raise ResourceError(
                    f"job {job} was not heard of for {PATIENCE_S} s and may go on: {reason(error)}; "
                    f"{how_to(client.get_address(), job)}"
                ) from None
        time.sleep(RETRY_S)


def stop(client: Any, job: str, address: str) -> None:
    """Stop a job and wait until it has ended. Raises ``ResourceError`` if it did not."""
    note(f"stopping job {job} …")
    until, why = time.monotonic() + STOP_S + 10, f"it had {STOP_S + 10} s"
    try:
        client.stop_job(job)
        while time.monotonic() < until:
            if client.get_job_info(job).status.is_terminal():
                return
            time.sleep(0.5)
    except (OSError, RuntimeError) as error:
        why = reason(error)
    raise ResourceError(f"job {job} has not stopped: {why}; {how_to(address, job)}")


def exit_code(details: Any) -> int:
    """A job's exit code as a shell has it. Raises ``StageError`` for a job that never ran."""
    if details.status == "STOPPED":
        return 130
    if details.driver_exit_code is None:
        raise StageError(f"the job did not run: {last_line(details.message or details.status)}")
    code = int(details.driver_exit_code)
    return code if code >= 0 else 128 - code


def how_to(address: str, job: str) -> str:
    return (
        f"follow it with: ray job logs --address {address} --follow {job}, "
        f"stop it with: ray job stop --address {address} {job}"
    )


def write(text: str) -> None:
    click.echo(text, nl=False)


def note(text: str) -> None:
    """On standard error: standard output is the job's own."""
    click.echo(text, err=True)
