"""Answers that decline to answer, told by how they begin."""

from __future__ import annotations

import re

OPENING = 120
"""Characters in which a refusal has to begin: further on, the words are more often somebody's in a story."""

_HELP = (
    r"(?:help(?! but\b)|assist|provide|give(?! up\b)|share|offer|comply|fulfill?|answer|respond|discuss|"
    r"engage|continue|create|write|generate|produce|complete|advise|condone|promote|support|"
    r"do (?:that|this)|access|browse)"
)
_CANNOT = (
    r"(?:can(?:no|')t|can not|could not|won't|will not|"
    r"(?:am|'m) (?:unable|not (?:able|allowed|permitted)) to)"
)
_MODEL = (
    r"(?:(?:large )?language model|AI|artificial intelligence)(?: (?:language )?(?:model|assistant|system))?"
)
PHRASES = {
    "en": (
        rf"\bI(?: (?:really|simply|just|also|therefore))? ?{_CANNOT} "
        rf"(?:(?:actually|really|directly|personally|knowingly|in good conscience),? )?{_HELP}\b",
        rf"\b(?:sorry|apologi[sz]e|unfortunately)\b[^.!?\n]{{0,30}}\bI ?{_CANNOT}",
        r"\bI (?:do not|don't) feel comfortable\b",
        r"\bI (?:must|have to|need to|will have to) (?:respectfully )?(?:decline|refuse)\b",
        rf"\bas an? {_MODEL},? I\b",
        r"\b(?:against|violates?) (?:my|our) (?:guidelines|programming|polic(?:y|ies)|principles)\b",
    ),
    "de": (
        r"\b(?:ich (?:kann|darf|werde)|(?:kann|darf|werde) ich) (?:\w+ ){0,5}?nicht (?:\w+ ){0,2}?(?:helfen|"
        r"beantworten|unterstützen|geben|erstellen|bereitstellen|weiterhelfen|antworten)\b",
        r"\b(?:tut mir leid|leider)\b[^.!?\n]{0,20}\b(?:ich kann|kann ich|ich darf|darf ich)\b"
        r"[^.!?\n]{0,60}\bnicht\b",
        r"\bals (?:eine? )?(?:KI\b|künstliche Intelligenz|(?:großes )?Sprachmodell)[^.!?\n]{0,20}\bich\b",
    ),
    "fr": (
        r"\bje (?:ne peux|ne puis|ne pourrai|ne suis) pas (?:en mesure |capable |autorisée? )?(?:de |d')?"
        r"(?:vous |t'|te |y )?(?:aider|répondre|fournir|donner|assister|créer|écrire|générer|partager)\b",
        r"\bdésolée?,? (?:mais )?je ne\b",
        r"\ben tant (?:qu'IA|que modèle de langage|qu'intelligence artificielle|qu'assistant)",
    ),
    "es": (
        r"\bno puedo (?:ayudar|proporcionar|responder|dar|ofrecer|crear|escribir|generar|cumplir|asistir|"
        r"compartir)",
        r"\blo siento,? (?:pero )?no puedo\b",
        r"\bcomo (?:una? )?(?:modelo de lenguaje|IA\b|inteligencia artificial)",
    ),
    "it": (
        r"\bnon posso (?:aiutar|fornir|risponder|dar|offrir|crear|scriver|generar|assister|condivider)",
        r"\bmi dispiace,? (?:ma )?non (?:posso|sono in grado)\b",
        r"\b(?:in quanto|come) (?:una? )?(?:modello linguistico|IA\b|intelligenza artificiale)",
    ),
    "pt": (
        r"\bnão posso (?:ajudar|fornecer|responder|dar|oferecer|criar|escrever|gerar|cumprir|compartilhar)",
        r"\b(?:desculpe|sinto muito|lamento),? (?:mas )?não (?:posso|consigo)\b",
        r"\bcomo (?:uma? )?(?:modelo de linguagem|IA\b|inteligência artificial)",
    ),
    "zh": (
        r"(?:抱歉|对不起|對不起)[^。!?\n]{0,12}(?:不能|无法|無法)",
        r"我(?:不能|无法|無法)(?:提供|帮助|幫助|协助|協助|回答|满足|滿足)",
        r"作为(?:一个|一名|一款)?(?:AI|人工智能|语言模型|大型语言模型)",
    ),
    "ja": (
        r"(?:申し訳|すみません|ごめんなさい)[^。\n]{0,40}(?:できません|できかねます|いたしかねます)",
        r"お(?:答え|手伝い|応え)(?:すること(?:は|が))?(?:できません|できかねます)",
    ),
}
REFUSAL = re.compile("|".join(phrase for phrases in PHRASES.values() for phrase in phrases), re.IGNORECASE)


def refusal(text: str) -> str | None:
    """Why the answer is refused if it declines. It does not find refusals that are merely evasive."""
    # A phrase may end behind the opening.
    start = text.strip().replace("’", "'")[: 2 * OPENING]
    found = REFUSAL.search(start)
    return "declines to answer" if found and found.start() < OPENING else None
