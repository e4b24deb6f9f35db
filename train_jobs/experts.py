"""`largeforge experts`: what a served router serves, changed while it serves."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click

from largeforge_ray.errors import ConfigError, StageError
from largeforge_ray.keyfile import read_token

POLL_S = 0.5
OVER = ("live", "failed")


@click.group()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The router's address.")
@click.option(
    "--token", type=click.Path(path_type=Path), help="File of the admin token; serve takes the same."
)
@click.pass_context
def experts(context: click.Context, url: str, token: Path | None) -> None:
    """List, add and remove the experts of a router that serves, without a restart.

    \b
    largeforge keys admin admin-token
    largeforge serve --admin-token admin-token
    largeforge experts --token admin-token add orders-v2
    """
    context.obj = Router(url.rstrip("/"), read_token(token) if token else "")


@experts.command("list")
@click.pass_obj
def list_experts(router: Router) -> None:
    """Print each expert, its state, and why it is in it."""
    for card in router.cards():
        up = "up" if card["up"] else "down"
        click.echo(
            f"{card['name']:<20} {card['state']:<9} {card['artifact']}  {up}, {card['running']} running"
        )
        if card["reason"]:
            click.echo(f"{'':<20} {card['reason']}")


@experts.command()
@click.argument("adapter")
@click.option("--name", help="The expert's name; the artifact's own if left out.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Stay until it is live or has failed."
)
@click.pass_obj
def add(router: Router, adapter: str, name: str | None, wait: bool) -> None:
    """Promote ADAPTER, an artifact's key or name: preflight, load, probe, shadow, canary, live.

    Exits 1 with the reason if it is refused or fails its trial; traffic does not notice.
    """
    entry = router.ask("POST", "/admin/experts", {"adapter": adapter, **({"name": name} if name else {})})
    expert = entry["expert"]["name"]
    click.echo(f"{expert}: {entry['reason']}, loading")
    if wait:
        _watch(router, expert, (entry["expert"]["adapter_key"] or "")[:16])


@experts.command()
@click.argument("name")
@click.pass_obj
def remove(router: Router, name: str) -> None:
    """Take NAME out: it ends what it has and gets nothing new."""
    click.echo(f"{name}: {router.ask('DELETE', f'/admin/experts/{name}')['reason']}, draining")


def _watch(router: Router, name: str, artifact: str) -> None:
    last = "loading"
    while last not in OVER:
        time.sleep(POLL_S)
        found = [c for c in router.cards() if c["name"] == name and c["artifact"] == artifact]
        if not found:
            raise StageError(f"expert '{name}' was removed while it was promoted")
        [card] = found
        if card["state"] != last:
            last = card["state"]
            click.echo(f"{name}: {last}, {card['reason']}", err=last == "failed")
    if last == "failed":
        raise StageError(f"'{name}' is not promoted; its adapter is left as it is")


class Router:
    """A router's HTTP API; raises ``StageError`` with the router's own words."""

    def __init__(self, url: str, token: str, timeout_s: float = 120) -> None:
        self._url, self._token, self._timeout_s = url, token, timeout_s

    def cards(self) -> list[dict[str, Any]]:
        return list(self.ask("GET", "/v1/experts")["data"])

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        key = self._token if path.startswith("/admin") else os.environ.get("OPENAI_API_KEY", "")
        if path.startswith("/admin") and not key:
            raise ConfigError("the admin API wants its token: largeforge experts --token FILE ...")
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:
                return dict(json.loads(reply.read()))
        except urllib.error.HTTPError as error:
            raise StageError(_words(error.read()) or f"{path}: HTTP {error.code}") from None
        except OSError as error:
            why = getattr(error, "reason", error)
            raise StageError(
                f"no router answers at {self._url}: {why}; start one with `largeforge serve`, or give --url"
            ) from None


def _words(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
