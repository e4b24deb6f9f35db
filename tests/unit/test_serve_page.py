"""The files of the router's page: small, complete, of one origin, and shipped."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from serve_apps.page import PageFile, page_files

ROOT = Path(__file__).parents[2]
MAX_BYTES = 30 * 1024
FILES = page_files()
TEXTS = {path: file.body.decode() for path, file in FILES.items()}
EACH = pytest.mark.parametrize("path", FILES)


class Tags(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, attribute: str) -> list[Any]:
        return [attributes[attribute] for _, attributes in self.found if attribute in attributes]


TAGS = Tags(TEXTS["/"])


def test_the_whole_page_is_small() -> None:
    assert sum(len(file.body) for file in FILES.values()) < MAX_BYTES


def test_all_that_a_file_refers_to_is_served_as_what_it_is() -> None:
    wanted = {"/" + one for one in (*TAGS.values("src"), *TAGS.values("href")) if not one.startswith("data:")}
    for path, text in TEXTS.items():
        if path.endswith(".js"):
            wanted |= {"/" + name for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert wanted == set(FILES) - {"/"}
    kinds = {path: file.content_type for path, file in FILES.items()}
    assert kinds["/"] == "text/html; charset=utf-8"
    assert kinds["/page.css"] == "text/css; charset=utf-8"
    assert kinds["/page.js"] == "text/javascript; charset=utf-8"


@EACH
def test_no_file_names_another_origin(path: str) -> None:
    namespaces = {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w[^\s'\")]*", TEXTS[path])) <= namespaces


def test_the_html_has_no_code_and_no_style_that_the_policy_would_refuse() -> None:
    assert [tag for tag, _ in TAGS.found if tag == "style"] == []
    assert [attributes for tag, attributes in TAGS.found if tag == "script" and "src" not in attributes] == []
    assert [name for _, attributes in TAGS.found for name in attributes if name.startswith("on")] == []
    assert TAGS.values("style") == []


def test_every_field_has_a_label_and_every_id_is_its_own() -> None:
    ids = TAGS.values("id")
    assert len(ids) == len(set(ids))
    fields = [a["id"] for tag, a in TAGS.found if tag in ("textarea", "select", "input")]
    assert sorted(fields) == sorted(TAGS.values("for"))
    for attribute in ("aria-labelledby", "aria-describedby"):
        assert set(TAGS.values(attribute)) <= set(ids)
    used = re.findall(r'\bat\("([\w-]+)"\)', TEXTS["/page.js"])
    assert set(used) <= set(ids)


@EACH
def test_every_file_comes_with_the_headers_that_confine_it(path: str) -> None:
    headers = FILES[path].headers
    directives = dict(one.split(" ", 1) for one in headers["content-security-policy"].split("; "))
    assert directives["default-src"] == "'none'"
    assert {directives[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert {directives[kind] for kind in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@EACH
def test_a_browser_that_has_a_file_is_not_sent_it_again(path: str) -> None:
    file = FILES[path]
    assert re.fullmatch(r'"[0-9a-f]{16}"', file.etag)
    assert file.headers["etag"] == file.etag
    assert file.headers["cache-control"] == "no-cache"
    assert file.reply("") == (200, file.body)
    assert file.reply('"0123456789abcdef"') == (200, file.body)
    for known in (file.etag, f'W/{file.etag}, "other"'):
        assert file.reply(known) == (304, b"")


def test_other_bytes_have_another_etag() -> None:
    assert len({file.etag for file in FILES.values()}) == len(FILES)
    assert all(isinstance(file, PageFile) for file in FILES.values())


def test_the_wheel_has_every_file_of_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    folder = ROOT / "serve_apps/page"
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    assert {path for path in folder.iterdir() if path.suffix in (".html", ".css", ".js")} == shipped
    assert len(shipped) == len(FILES)
