"""The page at ``/``: a chat, the experts and their load, and what the router would decide. Plain files.

    files = page_files()                              # URL path -> file, "/" among them
    status, body = files["/"].reply(if_none_match)    # 304 and no body if the browser has it already
    await exchange.reply(status, body, files["/"].headers, files["/"].content_type)

The page asks for nothing but itself and the router's own endpoints, and its policy holds the browser to that:
no inline code, no other origin, no frame around it, and no way to turn text into markup.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",  # the icon, which a browser would otherwise ask for as /favicon.ico
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # kept, but asked for again: another version may serve by now
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page. ``etag`` changes with its bytes."""

    body: bytes
    content_type: str
    etag: str

    @property
    def headers(self) -> dict[str, str]:
        return {**HEADERS, "etag": self.etag}

    def reply(self, if_none_match: str) -> tuple[int, bytes]:
        """Status and body for a request with this ``If-None-Match``, empty for none."""
        return (304, b"") if self.etag in if_none_match else (200, self.body)


def page_files() -> dict[str, PageFile]:
    """The page's files by the path they are served at."""
    found = {}
    for entry in files(__name__).iterdir():
        kind = TYPES.get("." + entry.name.rpartition(".")[2])
        if kind is not None:
            body = entry.read_bytes()
            path = "/" if entry.name == "index.html" else f"/{entry.name}"
            found[path] = PageFile(body, kind, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
    return found
