"""Print what the servers really answer, as Markdown, without harvest between.

usage: observe.py WORK > answers.md     (the servers as `serve` starts them)
"""

import base64
import http.client
import json
import math
import pathlib
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

CHAT, EMBEDDINGS, TRANSFORMERS, ROUNDED = 8190, 8191, 8193, 8192
PATH, EMBED = "/v1/chat/completions", "/v1/embeddings"
NAMES = {CHAT: "llama-server", EMBEDDINGS: "llama-server --embeddings", ROUNDED: "llama-server, no projector", TRANSFORMERS: "transformers serve"}  # fmt: skip
VOCABULARY = 4096


class Answer(NamedTuple):
    status: int
    kind: str
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def post(port: int, path: str, body: bytes) -> Answer:
    """One POST on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return Answer(response.status, response.getheader("content-type") or "none", response.read())
    finally:
        connection.close()


def chat(content: Any, **fields: Any) -> bytes:
    base = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 2, "temperature": 0}
    return json.dumps(base | fields).encode()


def embed(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny"} | fields).encode()


def image(data: bytes) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return [{"type": "text", "text": "What is in the picture?"}, {"type": "image_url", "image_url": {"url": url}}]


def cases(work: pathlib.Path) -> list[tuple[str, int, str, bytes]]:
    picture = image((work / "pictures/red_left.png").read_bytes())
    remote = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/picture.png"}}]
    scored = {"logprobs": True, "top_logprobs": 2}
    question = "Is the red circle left of the others?"
    return [
        ("text", CHAT, PATH, chat(question)),
        ("another model's name", CHAT, PATH, chat(question, model="no-such-model")),
        ("logprobs", CHAT, PATH, chat(question, max_tokens=1, **scored)),
        ("`top_logprobs` without `logprobs`", CHAT, PATH, chat(question, top_logprobs=2)),
        ("legacy completions with `echo` and `logprobs`", CHAT, "/v1/completions",
         json.dumps({"model": "tiny", "prompt": question, "max_tokens": 1, "echo": True, "logprobs": 2}).encode()),
        ("image as data URI", CHAT, PATH, chat(picture)),
        ("image that is no image", CHAT, PATH, chat(image(b"\x89PNG\r\n\x1a\nnot a picture"))),
        ("image by address, not reachable", CHAT, PATH, chat(remote)),
        ("image, no projector", ROUNDED, PATH, chat(picture)),
        ("text over the context", CHAT, PATH, chat("word " * 6000)),
        ("no messages", CHAT, PATH, embed()),
        ("content of the wrong type", CHAT, PATH, chat(7)),
        ("invalid JSON", CHAT, PATH, b'{"model": "tiny"'),
        ("unknown field", CHAT, PATH, chat(question, no_such_field=1)),
        ("embeddings from a chat server", CHAT, EMBED, embed(input=question)),
        ("one text", EMBEDDINGS, EMBED, embed(input=question)),
        ("one text, base64", EMBEDDINGS, EMBED, embed(input=question, encoding_format="base64")),
        ("text over the physical batch", EMBEDDINGS, EMBED, embed(input="word " * 700)),
        ("text over the context", EMBEDDINGS, EMBED, embed(input="word " * 6000)),
        ("chat-shaped input with an image", EMBEDDINGS, EMBED, embed(messages=[{"role": "user", "content": picture}])),
        ("chat from an embeddings server", EMBEDDINGS, PATH, chat(question)),
        ("text", TRANSFORMERS, PATH, chat(question)),
        ("another model's name", TRANSFORMERS, PATH, chat(question, model="no-such-model")),
        ("logprobs", TRANSFORMERS, PATH, chat(question, **scored)),
        ("two replies (`n`)", TRANSFORMERS, PATH, chat(question, n=2)),
        ("image, a model without eyes", TRANSFORMERS, PATH, chat(picture)),
        ("the question of that image alone", TRANSFORMERS, PATH, chat("What is in the picture?")),
        ("text over the context", TRANSFORMERS, PATH, chat("word " * 6000)),
        ("unknown field", TRANSFORMERS, PATH, chat(question, no_such_field=1)),
        ("no messages", TRANSFORMERS, PATH, embed()),
        ("invalid JSON", TRANSFORMERS, PATH, b'{"model": "tiny"'),
        ("embeddings", TRANSFORMERS, EMBED, embed(input=question)),
    ]  # fmt: skip


def shortened(text: str) -> str:
    """Long number lists, base64 and repetition cut to their beginning."""
    text = re.sub(r"\[(-?[\d.e-]+,-?[\d.e-]+),[-\d.e,]{60,}\]", r"[\1,...]", text)
    text = re.sub(r'("[A-Za-z0-9+/=]{16})[A-Za-z0-9+/=]{40,}"', r'\1..."', text)
    text = re.sub(r"base64,[A-Za-z0-9+/=]{24,}", "base64,...", text)
    text = re.sub(r"(word ){5,}", "word word ... ", text)
    return re.sub(r',"timings":\{[^}]*\}', "", text)


def first_position(answer: Answer) -> dict[int, float]:
    entries = answer.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {entry["id"]: entry["logprob"] for entry in entries}


def print_measured() -> None:
    """What takes more than one answer, or more than can be shown."""
    whole = {"logprobs": True, "top_logprobs": VOCABULARY}
    answer = post(CHAT, PATH, chat("Where is the circle?", max_tokens=1, **whole))
    entries = answer.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    texts = Counter(entry["token"] for entry in entries)
    spellings = Counter(bytes(entry["bytes"]) for entry in entries)
    print("### Measured\n")
    print("| what | value |\n|---|---|")
    print(f"| `top_logprobs: {VOCABULARY}`, the whole vocabulary: entries at a position | {len(entries):,} |")
    print(
        f"| different ids, texts, byte strings among them | {len({entry['id'] for entry in entries}):,}, {len(texts):,}, {len(spellings):,} |"
    )
    often = ", ".join(f"{json.dumps(text)} {count} times" for text, count in texts.most_common(3))
    print(f"| texts that come most often | {often} |")
    often = ", ".join(f"`{list(text)}` {count} times" for text, count in spellings.most_common(1))
    print(f"| bytes that come most often | {often} |")
    print(f"| sum of the probabilities | {sum(math.exp(entry['logprob']) for entry in entries):.6f} |")
    print(f"| bytes of the answer, an entry | {len(answer.body):,}, {len(answer.body) / len(entries):.1f} |")
    above = post(CHAT, PATH, chat("x", max_tokens=1, logprobs=True, top_logprobs=100_000))
    print(f"| `top_logprobs: 100000`: entries that come | {len(first_position(above)):,} |")
    for repeats in (2, 10):
        for options in ({}, {"cache_prompt": False}):
            largest, again, tokens = 0.0, 0.0, 0
            for number in range(8):
                text = f"Prompt {number} of {len(options)} that the server has not seen. " * repeats
                asked = [post(CHAT, PATH, chat(text, max_tokens=1, **whole, **options)) for _ in range(3)]
                a, b, c = map(first_position, asked)
                largest = max(largest, *(abs(a[key] - b[key]) for key in a))
                again = max(again, *(abs(b[key] - c[key]) for key in a))
                tokens = asked[0].json()["usage"]["prompt_tokens"]
            name = f"8 prompts of {tokens} tokens" + (", `cache_prompt: false`" if options else "")
            print(f"| {name}: largest difference of a logprob, first answer against second | {largest:.1e} |")
            print(f"| the same, second against third | {again:.1e} |")
    f32 = post(CHAT, PATH, chat("x", max_tokens=1, **whole))
    q8_0 = post(ROUNDED, PATH, chat("x", max_tokens=1, **whole))
    a, b = first_position(f32), first_position(q8_0)
    print(f"| largest difference, f32 against q8_0 | {max(abs(a[key] - b[key]) for key in a):.1e} |")
    for name, one in (("f32", f32), ("q8_0", q8_0)):
        body = one.json()
        print(f"| `model` and `system_fingerprint` of {name} | `{body['model']}`, `{body['system_fingerprint']}` |")
    print()


def main() -> None:
    work = pathlib.Path(sys.argv[1])
    print_measured()
    for title, port, path, body in cases(work):
        answer = post(port, path, body)
        asked = shortened(body.decode(errors="backslashreplace"))
        asked = asked[:260] + ("..." if len(asked) > 260 else "")
        print(f"### {NAMES[port]}: {title}\n\n`POST {path}` `{asked}`\n")
        print(f"{answer.status}, `{answer.kind}`, {len(answer.body):,} bytes\n")
        print(f"```\n{shortened(answer.body.decode(errors='replace'))[:600]}\n```\n")


if __name__ == "__main__":
    main()
