"""Which answers the farm's filters keep, why they refuse the others, and what they scrub."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.config.filters import (
    FILTERS,
    LANGUAGES,
    REGIONS,
    SCRIPTS,
    Charset,
    Contamination,
    Duplicate,
    Language,
    Length,
    Pii,
    Refusal,
    Repetition,
)
from largeforge_ray.teach.filters import ContaminationIndex, build_filters
from largeforge_ray.teach.filters.refusal import OPENING, PHRASES
from largeforge_ray.types import Verdict

CODE = """```python
def total(prices, rate):
    # This adds all of the prices together and then puts the tax on top of them.
    return sum(prices) * (1 + rate)
```
"""
LOREM = "The river rises in the hills above the town and runs past three old mills to the sea."


def reason(config: Any, answer: str, prompt: str = "?") -> str | None:
    kept, verdict = build_filters([config])(prompt, answer)
    assert kept == answer or config.name == "pii"
    assert verdict is None or (verdict.kept, verdict.by) == (False, config.name)
    return verdict and verdict.reason


def scrubbed(text: str, **fields: Any) -> str:
    kept, verdict = build_filters([Pii(**fields)])("?", text)
    assert verdict is None
    return kept


@pytest.mark.parametrize(
    ("bounds", "text", "why"),
    [
        ({"min_words": 3}, "one two three", None),
        ({"min_words": 3}, "one, two.", "fewer than 3 words"),
        ({"min_words": 1}, "?! ...", "fewer than 1 words"),
        ({"min_words": 1}, "42", None),
        ({"max_words": 2}, "don't go", None),
        ({"max_words": 2}, "it’s 3.5 euros", "more than 2 words"),
        ({"min_words": 8}, "法国的首都是巴黎。", None),
        ({"max_words": 7}, "法国的首都是巴黎。", "more than 7 words"),
        ({"min_words": 2, "max_words": 2}, "नमस्ते दुनिया", None),
    ],
)
def test_length_counts_words_and_characters_where_none_are_spaced(
    bounds: dict[str, int], text: str, why: str | None
) -> None:
    assert reason(Length(**bounds), text) == why


@pytest.mark.parametrize(
    ("scripts", "text", "kept"),
    [
        (["latin"], "Plain English, naïve or not.", True),
        (["latin"], "12 + 30 = 42 €", True),
        (["latin"], "The sum is π r², in µm, as everybody knows.", True),
        (["latin"], "Столица Франции", False),
        (["latin"], "The answer is 法国的首都是巴黎", False),
        (["cyrillic"], "Столица Франции", True),
        (["latin", "cyrillic"], "Paris или Париж", True),
        (["han"], "法国的首都是巴黎。", True),
        (["han"], "フランスの首都はパリです", False),
        (["han", "hiragana", "katakana"], "フランスの首都はパリです", True),
    ],
)
def test_charset_asks_for_a_share_of_the_letters(scripts: list[str], text: str, kept: bool) -> None:
    why = reason(Charset(scripts=scripts), text)
    assert why == (None if kept else f"under 0.9 of the letters are {', '.join(scripts)}")


@pytest.mark.parametrize(
    ("languages", "text", "kept"),
    [
        (["en"], LOREM, True),
        (["en"], "Die Hauptstadt von Frankreich ist Paris, und sie liegt an der Seine.", False),
        (["de"], "Die Hauptstadt von Frankreich ist Paris, und sie liegt an der Seine.", True),
        (["en", "fr"], "La capitale de la France est Paris, une ville au bord de la Seine.", True),
        (["en", "fr"], "フランスの首都はパリです。", False),
        (["zh"], "法国的首都是巴黎，位于塞纳河畔。", True),
        (["de"], CODE, True),
        (["de"], CODE + "Diese Funktion rechnet die Preise zusammen und gibt die Summe zurück.", True),
        (["de"], CODE + LOREM, False),
        *((["de"], short, True) for short in ("", "42", "Paris", "Yes.", "x = 3", '{"a": [1, 2]}')),
    ],
)
def test_language_refuses_only_what_is_surely_in_another_one(
    languages: list[str], text: str, kept: bool
) -> None:
    assert reason(Language(languages=languages), text) == (None if kept else f"not in {', '.join(languages)}")


def test_language_can_be_asked_to_be_surer() -> None:
    text = "A capital da França é Paris."
    assert reason(Language(languages=["en"]), text) == "not in en"
    assert reason(Language(languages=["en"], confidence=0.99), text) is None


REFUSALS = {
    "en": [
        "I'm sorry, but I can't assist with that.",
        "I’m unable to provide medical advice.",
        "As an AI language model, I do not have opinions.",
        "Unfortunately, I cannot browse the web.",
        "I must respectfully decline.",
        "I don't feel comfortable writing this.",
        "That is against my guidelines.",
    ],
    "de": [
        "Es tut mir leid, aber dabei kann ich dir nicht helfen.",
        "Das kann ich leider nicht beantworten.",
        "Als Sprachmodell habe ich keine Meinung.",
    ],
    "fr": [
        "Je suis désolé, mais je ne peux pas vous aider.",
        "En tant que modèle de langage, je n'ai pas d'avis.",
    ],
    "es": ["Lo siento, pero no puedo ayudar con eso.", "Como modelo de lenguaje, no tengo opiniones."],
    "it": ["Mi dispiace, ma non posso aiutarti.", "In quanto modello linguistico, non ho opinioni."],
    "pt": ["Desculpe, mas não posso ajudar com isso.", "Como um modelo de linguagem, não tenho opiniões."],
    "zh": ["抱歉,我无法提供帮助。", "作为一个人工智能,我没有感情。"],
    "ja": ["申し訳ありませんが、お答えできません。"],
}


@pytest.mark.parametrize("text", [text for texts in REFUSALS.values() for text in texts])
def test_an_answer_that_begins_by_declining_is_refused(text: str) -> None:
    assert reason(Refusal(), text) == "declines to answer"
    assert reason(Refusal(), f"\n {text.upper()} {LOREM}") == "declines to answer"


def test_every_language_with_phrases_has_its_refusals_tested() -> None:
    assert set(REFUSALS) == set(PHRASES)


@pytest.mark.parametrize(
    "text",
    [
        "I cannot help but admire the view.",
        "I can't wait to help you with this!",
        "Sorry for the delay. The answer is 7.",
        "As an AI researcher, she can't share her data.",
        "We cannot create a triangle of these sides.",
        "I'm sorry to hear that. Try turning it off and on.",
        "No, the ship cannot provide shelter.",
        "Der Motor kann nicht starten, weil der Tank leer ist.",
        "No puedo creerlo, dijo ella.",
        f"{LOREM} {LOREM} Then he said: I'm sorry, but I can't assist with that.",
    ],
)
def test_an_answer_that_only_sounds_like_a_refusal_is_kept(text: str) -> None:
    assert reason(Refusal(), text) is None


def test_a_refusal_counts_if_it_begins_within_the_opening() -> None:
    phrase = "I cannot help."
    assert reason(Refusal(), "." * (OPENING - 1) + phrase)
    assert reason(Refusal(), "." * OPENING + phrase) is None


@pytest.mark.parametrize(
    ("fields", "text", "share"),
    [
        ({"n": 2, "max_share": 0.0}, "a b c d", None),
        ({"n": 2, "max_share": 0.0}, "a b c a b", 0.0),
        ({"n": 2, "max_share": 0.4}, "a b c a b", None),  # 2 words of 5
        ({"n": 2, "max_share": 0.39}, "a b c a b", 0.39),
        ({"n": 2, "max_share": 0.39}, "A, b! c... a b.", 0.39),
        ({"n": 1, "max_share": 0.5}, "no no no no", 0.5),
        ({"n": 2, "max_share": 0.74}, "no no no no", 0.74),  # words in overlapping n-grams count once: 3 of 4
        ({"n": 2, "max_share": 0.75}, "no no no no", None),
        ({}, "yes " * 4, None),
        ({}, "the answer is yes and " * 20, 0.3),
        ({}, LOREM, None),
        ({}, "", None),
    ],
)
def test_repetition_measures_the_words_in_ngrams_said_before(
    fields: dict[str, Any], text: str, share: float | None
) -> None:
    expected = None if share is None else f"over {share} of the words repeat"
    assert reason(Repetition(**fields), text) == expected


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Write to joe.doe+x@mail.example.co.uk.", "Write to [EMAIL]."),
        ("<a@b.de>,c_d@e-f.org", "<[EMAIL]>,[EMAIL]"),
        ("pay DE89 3704 0044 0532 0130 00 AND wait", "pay [IBAN] AND wait"),
        ("GB29NWBK60161331926819", "[IBAN]"),
        ("ES91 2100 0418 4502 0005 1332 THEN", "[IBAN] THEN"),
        ("card 4111 1111 1111 1111 12 times", "card [CARD] 12 times"),
        ("5500-0000-0000-0004/378282246310005", "[CARD]/[CARD]"),
        ("ask 8.8.8.8:53, IP:1.1.1.1.", "ask [IP]:53, IP:[IP]."),
        ("2606:4700:4700::1111: fast", "[IP]: fast"),
        ("call (415) 555-2671 or +49 30 901820!", "call [PHONE] or [PHONE]!"),
        ("+14155552671", "[PHONE]"),
    ],
)
def test_personal_data_is_scrubbed_and_the_text_around_it_stays(text: str, left: str) -> None:
    assert scrubbed(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "DE88 3704 0044 0532 0130 00",  # the checksum is wrong
        "4111 1111 1111 1112 and 1234567890123452",  # wrong, and of no card's first digit
        "127.0.0.1, 192.168.1.10, 10.0.0.1, 0.0.0.0, 256.1.1.1 and version 1.2.3",
        "::1, fe80::1, 2001:db8::1, 12:30:45, 00:1a:2b:3c:4d:5e and a::b",
        "4155552671 - 4,155,552,671 - 3.14159265358979 - 2024-11-23 - 123 456 7890 - 555-0100",
        "@decorator, 5 @ 3.00, user@host, x@y",
        "[EMAIL] [IBAN] [CARD] [IP] [PHONE]",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert scrubbed(text) == text


def test_national_telephone_numbers_are_those_of_the_regions() -> None:
    text = "(415) 555-2671, 020 7946 0958, +33 1 42 68 53 00"
    assert scrubbed(text) == "[PHONE], 020 7946 0958, [PHONE]"
    assert scrubbed(text, regions=["GB"]) == "(415) 555-2671, [PHONE], [PHONE]"
    assert scrubbed(text, regions=["US", "GB"]) == "[PHONE], [PHONE], [PHONE]"
    assert scrubbed(text, regions=[]) == "(415) 555-2671, 020 7946 0958, [PHONE]"


def test_only_the_kinds_asked_for_are_scrubbed() -> None:
    text = "a@b.de at 8.8.8.8"
    assert scrubbed(text, kinds=["ip"]) == "a@b.de at [IP]"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a@b.de", "holds an e-mail address"),
        ("GB29NWBK60161331926819", "holds a bank account"),
        ("4111111111111111", "holds a card number"),
        ("8.8.8.8", "holds an IP address"),
        ("+49 30 901820", "holds a telephone number"),
        ("nothing", None),
    ],
)
def test_personal_data_can_refuse_an_answer_instead_and_leaves_it_as_it_is(
    text: str, why: str | None
) -> None:
    assert build_filters([Pii(action="drop")])("?", text) == (text, why and Verdict(False, "pii", why))


PIECES = st.sampled_from(
    [
        *("a@b.de", "x" * 60, "+4930901820", "GB29NWBK60161331926819", "4111 1111 1111 1111", "8.8.8.8"),
        *(
            "415",
            " ",
            "-",
            ".",
            "@",
            "1",
            "(415) 555-2671",
            "2606:4700::1",
            ":",
            "DE89",
            "[EMAIL]",
            "\n",
            "co",
        ),
    ]
)


@given(
    st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join)), st.sets(st.sampled_from(["US", "GB"]))
)
@settings(deadline=None, max_examples=300)
def test_scrubbing_twice_is_scrubbing_once(text: str, regions: set[str]) -> None:
    once = scrubbed(text, regions=sorted(regions))
    assert scrubbed(once, regions=sorted(regions)) == once
    assert reason(Pii(action="drop", regions=sorted(regions)), once) is None


EACH = [Length(min_words=2), Charset(), Language(), Refusal(), Repetition(n=2)]


@given(st.text() | st.lists(st.sampled_from(LOREM.split()), max_size=30).map(" ".join))
@settings(deadline=None)
def test_filters_never_change_a_text_and_say_the_same_of_it_every_time(text: str) -> None:
    accept = build_filters(EACH)
    kept, verdict = accept("?", text)
    assert kept == text
    assert accept("?", text) == (kept, verdict)
    assert (verdict is None) == all(reason(one, text) is None for one in EACH)


def test_the_first_filter_that_refuses_is_the_reason_and_sees_what_is_left() -> None:
    long, pii = Length(max_words=1), Pii()
    text = "joe.doe@example.org"
    assert build_filters([long, pii])("?", text) == (text, Verdict(False, "length", "more than 1 words"))
    assert build_filters([pii, long])("?", text) == ("[EMAIL]", None)
    assert build_filters([])("?", text) == (text, None)


def test_filters_work_after_a_journey_to_another_process() -> None:
    index = ContaminationIndex([LOREM], n=8)
    configs = [*EACH, Pii(), Duplicate(), Contamination(against=["prompts.test"])]
    there = pickle.loads(pickle.dumps(build_filters(configs, [index])))
    assert there("?", "Two words of a@b.de") == ("Two words of [EMAIL]", None)
    assert there(LOREM, "Two words")[1].by == "contamination"
    assert len(pickle.dumps(ContaminationIndex([" ".join(map(str, range(10_000)))], n=8))) < 81_000


def test_contamination_refuses_prompts_and_answers_that_share_ngrams() -> None:
    config = Contamination(against=["prompts.test", "other"], max_overlap=0.5)
    accept = build_filters([config], [ContaminationIndex([LOREM], n=8)])
    refused = Verdict(False, "contamination", "over 0.5 of its 8-grams are in prompts.test, other")
    assert accept(LOREM, "Yes.") == ("Yes.", refused)
    assert accept("Describe a river.", LOREM.upper()) == (LOREM.upper(), refused)
    assert accept("Describe a river.", "It is long.") == ("It is long.", None)
    some = LOREM + " Nothing of this second sentence stands in any of the items that were indexed here."
    assert accept("?", some) == (some, None)
    strict = Contamination(against=["prompts.test"])
    assert build_filters([strict], [ContaminationIndex([LOREM], n=8)])("?", some)[1] is not None


def test_each_contamination_filter_has_an_index_of_its_own() -> None:
    one, two = Contamination(against=["one"], n=2), Contamination(against=["two"], n=3)
    accept = build_filters(
        [one, Refusal(), two], [ContaminationIndex(["a b"], 2), ContaminationIndex(["d e f"], 3)]
    )
    assert accept("?", "d e f")[1].reason.endswith("3-grams are in two")
    assert accept("?", "a b")[1].reason.endswith("2-grams are in one")
    with pytest.raises(ValueError, match="zip"):
        build_filters([one, two], [ContaminationIndex([], 2)])


def test_names_in_the_config_are_those_the_libraries_know() -> None:
    from phonenumbers import SUPPORTED_REGIONS
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert set(SUPPORTED_REGIONS) == REGIONS
    assert set(LanguageIdentifier.from_model_file(MODEL_FILE).labels) - {"zxx"} == LANGUAGES
    assert all(regex.compile(rf"\p{{Script={script}}}") for script in SCRIPTS)


def test_every_filter_of_the_config_is_built() -> None:
    required = {"length": {"min_words": 1}, "contamination": {"against": ["prompts"]}}
    configs = [kind(**required.get(name, {})) for name, kind in FILTERS.items()]
    assert build_filters(configs, [ContaminationIndex([], 8)])("A prompt?", LOREM) == (LOREM, None)
