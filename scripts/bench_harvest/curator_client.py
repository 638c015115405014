"""Ask an OpenAI-compatible server about every row with bespokelabs-curator, limits lifted, cache in a folder of its own.

usage: curator_client.py URL ROWS.jsonl ANSWERS.jsonl CONCURRENCY      (CURATOR_CACHE_DIR: an empty folder)

The limits on requests and tokens a minute are set far above what it reaches, so that only its own work counts; it has
no way to switch its token estimates off.
"""

import importlib.util
import json
import os
import pathlib
import sys

# Its token estimates load an encoding from the network; litellm, on which it depends, brings the same file.
litellm = importlib.util.find_spec("litellm")
if litellm is not None and litellm.origin is not None:
    encodings = pathlib.Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(encodings))

from bespokelabs import curator


class Ask(curator.LLM):
    def prompt(self, input: dict) -> str:
        return input["text"]

    def parse(self, input: dict, response: str) -> dict:
        return {"text": input["text"], "answer": response}


def main(url: str, rows: str, answers: str, concurrency: int) -> None:
    llm = Ask(
        model_name="instant",
        backend="openai",
        generation_params={"max_tokens": 16, "temperature": 0.0},
        backend_params={
            "base_url": url,
            "api_key": "none",
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 100_000_000_000,
            "max_concurrent_requests": concurrency,
        },
    )
    with open(rows, encoding="utf-8") as source:
        data = [{"text": json.loads(line)["text"]} for line in source]
    dataset = llm(data).dataset
    with open(answers, "w", encoding="utf-8") as sink:
        sink.writelines(json.dumps(row) + "\n" for row in dataset)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
