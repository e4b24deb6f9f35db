"""The admin API: who holds the admin token registers, watches and removes experts at run time."""

from __future__ import annotations

import hmac
import json
from dataclasses import asdict
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from largeforge_ray.errors import ForgeError
from largeforge_ray.keyfile import hash_of
from largeforge_ray.promote.views import Entry
from largeforge_ray.routing.experts import Price
from serve_apps.exchange import Exchange
from serve_apps.openai_errors import ApiError, bad_request, unknown_path, wrong_method

EXPERTS = "/admin/experts"
MOST_BODY_BYTES = 10_000


class Registered(Protocol):
    """What the admin API asks of the registry; all raise ``ForgeError``."""

    async def propose(self, reference: str, name: str | None, price: Price | None, actor: str) -> Entry: ...

    async def remove(self, name: str, actor: str) -> Entry: ...

    async def history(self) -> list[Any]: ...


class Proposal(BaseModel):
    """The body of ``POST /admin/experts``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: str = Field(
        min_length=1, description="An adapter artifact's key, the beginning of it, or its name."
    )
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    price: Price | None = None


class Admin:
    """Answers what lies under ``/admin``. ``token_hash`` is ``hash_of`` the token."""

    def __init__(self, registry: Registered, token_hash: str) -> None:
        self._registry, self._token_hash = registry, token_hash

    async def answer(self, exchange: Exchange) -> None:
        """Raises ``ApiError`` for every refusal."""
        scheme, _, token = exchange.header("authorization").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(self._token_hash, hash_of(token.strip())):
            raise ApiError(
                401, "the admin API wants Authorization: Bearer ADMIN-TOKEN", code="invalid_admin_token"
            )
        name = exchange.path.removeprefix(f"{EXPERTS}/") if exchange.path.startswith(f"{EXPERTS}/") else ""
        if not name and exchange.path != EXPERTS:
            raise unknown_path(exchange.path, [EXPERTS])
        try:
            await self._do(exchange, name)
        except ForgeError as error:
            raise bad_request(str(error), code="refused") from None

    async def _do(self, exchange: Exchange, name: str) -> None:
        if name and exchange.method == "DELETE":
            await exchange.json(asdict(await self._registry.remove(name, "admin")), 202)
        elif not name and exchange.method == "GET":
            await exchange.json({"data": [asdict(event) for event in await self._registry.history()]})
        elif not name and exchange.method == "POST":
            wanted = _proposal(await exchange.body(MOST_BODY_BYTES))
            entry = await self._registry.propose(wanted.adapter, wanted.name, wanted.price, "admin")
            await exchange.json(asdict(entry), 202)
        else:
            raise wrong_method(exchange.method, exchange.path, ["DELETE"] if name else ["GET", "POST"])


def _proposal(body: bytes) -> Proposal:
    try:
        return Proposal.model_validate(json.loads(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the body"
        raise bad_request(f"{field}: {first['msg']}", field) from None
    except ValueError:
        raise bad_request("the body is not JSON", code="invalid_json") from None
