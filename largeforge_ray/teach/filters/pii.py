"""Personal data in an answer: found by form and, where there is one, by checksum."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from largeforge_ray.config.filters import Pii, PiiKind

Span = tuple[int, int]

# Bounded parts, or a long run of letters without an @ would be read again from each of them.
EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
# Of the first digits only those of payment cards.
CARD = re.compile(r"(?<![\w.,-])(?=[3-6]|2[2-7])\d(?:[ -]?\d){12,18}(?!\w|[.,-]\d)")
IP = re.compile(
    r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w)|(?<![\w.:])[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{3,35}(?<=[0-9A-Fa-f])(?!\w)"
)
SEPARATOR = re.compile(r"[ -]")
NAMES: dict[PiiKind, str] = {
    "email": "an e-mail address",
    "iban": "a bank account",
    "card": "a card number",
    "ip": "an IP address",
    "phone": "a telephone number",
}


def pii(config: Pii, text: str) -> tuple[str, str | None]:
    """The text as it stays and why it is refused, if it is.

    Scrubbing puts ``[EMAIL]``, ``[IBAN]``, ``[CARD]``, ``[IP]`` or ``[PHONE]`` in place of what it finds, and
    a scrubbed text holds nothing more to find. Names and postal addresses are not looked for.
    """
    for kind, find in KINDS.items():
        spans = find(text, config.regions) if kind in config.kinds else []
        if spans and config.action == "drop":
            return text, f"holds {NAMES[kind]}"
        if spans:
            # Once more: the next region has its turn, and what is gone may have hidden something.
            return pii(config, _without(text, spans, f"[{kind.upper()}]"))
    return text, None


def _without(text: str, spans: list[Span], instead: str) -> str:
    for start, end in reversed(spans):
        text = text[:start] + instead + text[end:]
    return text


def _emails(text: str, regions: list[str]) -> list[Span]:
    return [m.span() for m in EMAIL.finditer(text)]


def _ibans(text: str, regions: list[str]) -> list[Span]:
    """Accounts of ISO 13616, by their checksum."""
    return [*_valid(IBAN, text, _is_iban)]


def _cards(text: str, regions: list[str]) -> list[Span]:
    """Payment cards of ISO/IEC 7812, by their checksum."""
    return [*_valid(CARD, text, _is_card)]


def _valid(form: re.Pattern[str], text: str, check: Callable[[str], bool]) -> Iterator[Span]:
    """Where ``check`` holds for what has the form, or for its first groups: a word or number may follow."""
    for found in form.finditer(text):
        whole = found.group()
        for end in (len(whole), *(m.start() for m in reversed([*SEPARATOR.finditer(whole)]))):
            if check(SEPARATOR.sub("", whole[:end])):
                yield found.start(), found.start() + end
                break


def _is_iban(account: str) -> bool:
    turned = account[4:] + account[:4]
    return 15 <= len(account) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _is_card(number: str) -> bool:
    digits = [int(c) for c in number]
    doubled = sum(sum(divmod(2 * d, 10)) for d in digits[-2::-2])
    return 13 <= len(digits) <= 19 and (sum(digits[::-2]) + doubled) % 10 == 0


def _ips(text: str, regions: list[str]) -> list[Span]:
    """Public addresses only: private, loopback and documentation ones lead to nobody."""
    return [m.span() for m in IP.finditer(text) if _is_public(m.group())]


def _is_public(written: str) -> bool:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return False
    return address.is_global and not address.is_reserved and not address.is_multicast


def _phones(text: str, regions: list[str]) -> list[Span]:
    """Numbers that a country gives out, those of the first region that has any.

    A bare run of digits is more often an amount than a national number, so it needs its ``+``.
    """
    from phonenumbers import PhoneNumberMatcher

    for region in (*regions, None):
        found = [m for m in PhoneNumberMatcher(text, region) if not m.raw_string.isdigit()]
        if found:
            return [(m.start, m.end) for m in found]
    return []


KINDS: dict[PiiKind, Callable[[str, list[str]], list[Span]]] = {
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _ips,
    "phone": _phones,
}
"""In the order they are looked for: an account or a card may look like a telephone number."""
