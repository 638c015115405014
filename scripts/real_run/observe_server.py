"""Print what the server really answers, as Markdown: the requests a client gets right and those it gets wrong.

usage: observe_server.py > observed.md     (SERVER_URL as `serve` sets it)
"""

import json
import re

from embeddings_client import PATH, post

MODEL = "all-minilm-l6-v2"
LONG = "word " * 600  # over a slot's context of 512 tokens, under the physical batch of 2,048
VERY_LONG = "word " * 2500  # over the physical batch too


def request(**fields: object) -> bytes:
    return json.dumps({"model": MODEL} | fields).encode()


CASES: list[tuple[str, str, bytes]] = [
    ("one text", PATH, request(input="a red circle")),
    ("two texts", PATH, request(input=["a red circle", "a blue square"])),
    ("one text, base64", PATH, request(input="a red circle", encoding_format="base64")),
    ("unknown encoding", PATH, request(input="a red circle", encoding_format="int8")),
    ("`dimensions` asked for", PATH, request(input="a red circle", dimensions=64)),
    ("unknown model", PATH, request(input="a red circle", model="no-such-model")),
    ("no model", PATH, b'{"input": "a red circle"}'),
    ("empty text", PATH, request(input="")),
    ("empty list", PATH, request(input=[])),
    ("list with an empty text", PATH, request(input=["a red circle", ""])),
    ("no input", PATH, request()),
    ("input of the wrong type", PATH, request(input=7)),
    ("invalid JSON", PATH, b'{"input": "a red'),
    ("invalid UTF-8", PATH, b'{"input": "a \xff circle"}'),
    ("empty body", PATH, b""),
    ("text over the context", PATH, request(input=LONG)),
    ("text over the physical batch", PATH, request(input=VERY_LONG)),
    ("list with one text over the context", PATH, request(input=["a red circle", LONG])),
    ("path that is not there", "/v1/no-such-path", request(input="a red circle")),
    ("chat, which this model cannot do", "/v1/chat/completions", request(messages=[{"role": "user", "content": "hi"}])),
]


def shortened(body: str) -> str:
    """Long number lists and base64 strings cut to their beginning."""
    body = re.sub(r"\[(-?[\d.e-]+,-?[\d.e-]+),[-\d.e,]+\]", r"[\1,...]", body)
    return re.sub(r'("[A-Za-z0-9+/=]{16})[A-Za-z0-9+/=]{40,}"', r'\1..."', body)


def main() -> None:
    for title, path, body in CASES:
        answer = post(body, path)
        text = answer.body.decode("utf-8", errors="replace")
        kind = dict((name.lower(), value) for name, value in answer.headers).get("content-type", "none")
        asked = body[:80].decode(errors="backslashreplace") + ("..." if len(body) > 80 else "")
        print(f"### {title}\n\n`POST {path}` `{asked or '(nothing)'}`\n")
        print(f"{answer.status}, `{kind}`, {len(answer.body):,} bytes\n")
        print(f"```\n{shortened(text)[:600]}\n```\n")


if __name__ == "__main__":
    main()
