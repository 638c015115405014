#!/usr/bin/env python3
"""A teacher for `kind = "command"` that needs no model: counts letters. Shows the lines of the protocol.

docs/teachers/command.md describes them.
"""

import json
import string
import sys


def feature(prompt: str) -> list[float]:
    """The share of each letter among the letters of the prompt."""
    letters = [letter for letter in prompt.lower() if letter in string.ascii_lowercase]
    return [letters.count(letter) / max(len(letters), 1) for letter in string.ascii_lowercase]


def answer(question: dict) -> dict:
    """What is written for a line that was read."""
    whose = {"id": question["id"], "draw": question["draw"]}
    if not question["prompt"].strip():
        return whose | {"error": {"class": "deterministic", "message": "the prompt is empty"}}
    return whose | {"signals": {"feature": feature(question["prompt"])}}


def main() -> None:
    # A real teacher loads its model before this line, and writes what it has to say meanwhile to standard error.
    print(json.dumps({"armada": 1}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line)), allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
