"""What a ``teach`` stage's ``filters`` may say."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from largeforge_ray.config.base import Ref, Strict, as_list, by_name


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SCRIPTS = _names(
    "arabic armenian bengali cyrillic devanagari ethiopic georgian greek gujarati gurmukhi han hangul "
    "hebrew hiragana kannada katakana khmer lao latin malayalam mongolian myanmar oriya sinhala tamil "
    "telugu thai tibetan"
)
"""Unicode's names of the scripts of living languages, in lower case."""

LANGUAGES = _names(
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa "
    "fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka "
    "kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om "
    "or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk "
    "ur uz uzs vec vi vo wa wuu xh yo yue zh zu"
)
"""ISO 639 codes that can be told apart."""

REGIONS = _names(
    "AC AD AE AF AG AI AL AM AO AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT "
    "BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER "
    "ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GT GU GW GY HK HN HR HT HU ID IE "
    "IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV "
    "LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP "
    "NR NU NZ OM PA PE PF PG PH PK PL PM PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK "
    "SL SM SN SO SR SS ST SV SX SY SZ TA TC TD TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG US UY UZ VA "
    "VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW"
)
"""ISO 3166 codes of the countries whose telephone numbers are known."""


def _one_of(known: frozenset[str], rule: str) -> AfterValidator:
    def check(value: str) -> str:
        if value not in known:
            near = difflib.get_close_matches(value, sorted(known), n=1, cutoff=0.5)
            raise ValueError(f"'{value}' is not {rule}" + (f"; did you mean '{near[0]}'?" if near else ""))
        return value

    return AfterValidator(check)


ScriptName = Annotated[str, _one_of(SCRIPTS, "a Unicode script such as latin, cyrillic or han")]
LanguageCode = Annotated[str, _one_of(LANGUAGES, "an ISO 639 code such as en, de or zh")]
RegionCode = Annotated[str, _one_of(REGIONS, "an ISO 3166 code such as US, GB or IN")]


class Length(Strict):
    """Refuses answers with fewer or more words; where none are spaced, every character is a word."""

    name: Literal["length"] = "length"
    min_words: int | None = Field(None, ge=1)
    max_words: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _bounds_are_given_in_order(self) -> Length:
        if self.min_words is None and self.max_words is None:
            raise ValueError("length bounds nothing; give min_words, max_words or both")
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(
                f"min_words {self.min_words} and max_words {self.max_words} break the rule "
                "min_words <= max_words"
            )
        return self


class Charset(Strict):
    """Refuses answers with too many letters of other scripts."""

    name: Literal["charset"] = "charset"
    scripts: Annotated[list[ScriptName], Field(min_length=1), BeforeValidator(as_list)] = Field(["latin"])
    min_share: float = Field(0.9, gt=0.0, le=1.0, description="Of the letters.")


class Language(Strict):
    """Refuses answers that are surely in another language; code blocks are not read."""

    name: Literal["language"] = "language"
    languages: Annotated[list[LanguageCode], Field(min_length=1), BeforeValidator(as_list)] = Field(["en"])
    confidence: float = Field(
        0.5, gt=0.0, lt=1.0, description="Probability of the other language from which on it counts."
    )


class Refusal(Strict):
    """Refuses answers that begin by declining to answer."""

    name: Literal["refusal"] = "refusal"


class Repetition(Strict):
    """Refuses answers that repeat themselves, Rae et al. 2021 (arXiv:2112.11446), table A1."""

    name: Literal["repetition"] = "repetition"
    n: int = Field(5, ge=1, le=50, description="Words in a row that count once they come again.")
    max_share: float = Field(
        0.3, ge=0.0, lt=1.0, description="Of the words. The paper has 0.15 of the characters at n 5."
    )


class Duplicate(Strict):
    """Removes answers nearly the same as an earlier one, Broder 1997. The same ones are removed anyway."""

    name: Literal["duplicate"] = "duplicate"
    threshold: float = Field(
        0.8, ge=0.5, le=0.95, description="Jaccard similarity at which half of the pairs are found."
    )
    ngram: int = Field(3, ge=1, le=20, description="Words in a row that are compared.")


PiiKind: TypeAlias = Literal["email", "iban", "card", "ip", "phone"]


class Pii(Strict):
    """Scrubs personal data out of answers, or refuses the answers that hold some."""

    name: Literal["pii"] = "pii"
    action: Literal["scrub", "drop"] = "scrub"
    kinds: Annotated[list[PiiKind], Field(min_length=1)] = Field(["email", "iban", "card", "ip", "phone"])
    regions: list[RegionCode] = Field(
        ["US"], description="Whose national telephone numbers count; international ones always do."
    )


class Contamination(Strict):
    """Refuses rows whose prompt or answer shares n-grams with other datasets, Brown et al. 2020
    (arXiv:2005.14165), appendix C: any shared one, of 8 words for short items and up to 13 for long ones."""

    name: Literal["contamination"] = "contamination"
    against: Annotated[list[Ref], Field(min_length=1), BeforeValidator(as_list)]
    n: int = Field(8, ge=2, le=50)
    max_overlap: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the text's n-grams.")


FILTERS: dict[str, type[Strict]] = {
    "length": Length,
    "charset": Charset,
    "language": Language,
    "refusal": Refusal,
    "repetition": Repetition,
    "duplicate": Duplicate,
    "pii": Pii,
    "contamination": Contamination,
}

Filter = Annotated[
    Length | Charset | Language | Refusal | Repetition | Duplicate | Pii | Contamination,
    Field(discriminator="name"),
    BeforeValidator(by_name),
]
"""``- refusal``, or ``- {name: repetition, max_share: 0.2}``."""
