"""Two questions to a served router, through the official openai client."""

from __future__ import annotations

from collections.abc import Callable

QUESTIONS = (
    "Order as JSON with name, count, item, city: Ship 12 lanterns to Tallinn, the customer is Ingrid.",
    "What is the capital of France? Answer in one sentence.",
)
HEADERS = ("x-largeforge-expert", "x-largeforge-artifact", "x-largeforge-decision")


def ask_router(url: str, say: Callable[[str], None]) -> None:
    """Ask each question with ``model: "auto"``, the second one streamed, and say who answered and why."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    say(f"  models: {', '.join(m.id for m in client.models.list())}")
    for stream, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        say(f"  > {question.splitlines()[-1]}")
        if stream:
            with client.chat.completions.with_streaming_response.create(
                model="auto", messages=messages, max_tokens=48, temperature=0, stream=True
            ) as response:
                headers = response.headers
                text = "".join(c.choices[0].delta.content or "" for c in response.parse() if c.choices)
        else:
            raw = client.chat.completions.with_raw_response.create(
                model="auto", messages=messages, max_tokens=48, temperature=0
            )
            headers, text = raw.headers, raw.parse().choices[0].message.content
        say(f"    {text.strip()}")
        for name in HEADERS:
            say(f"    {name}: {headers[name]}")
