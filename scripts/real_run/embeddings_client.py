"""The few lines of HTTP that the helpers share; the server's address comes from SERVER_URL, as `serve` sets it."""

import base64
import http.client
import json
import os
import pathlib
import struct
import urllib.parse
from typing import Any, NamedTuple

PATH = "/v1/embeddings"


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


def post(body: bytes, path: str = PATH) -> Answer:
    """One POST on a connection of its own."""
    url = urllib.parse.urlsplit(os.environ["SERVER_URL"])
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=300)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def embed(texts: list[str], encoding: str = "float") -> list[list[float]]:
    """The embeddings of `texts`, in their order; a refusal ends the program with the server's own words."""
    answer = post(json.dumps({"model": "all-minilm-l6-v2", "input": texts, "encoding_format": encoding}).encode())
    if answer.status != 200:
        raise SystemExit(f"error: the server answered {answer.status}: {answer.body[:500].decode(errors='replace')}")
    rows: list[dict[str, Any]] = sorted(json.loads(answer.body)["data"], key=lambda row: row["index"])
    if encoding == "float":
        return [row["embedding"] for row in rows]
    raw = [base64.b64decode(row["embedding"], validate=True) for row in rows]
    return [list(struct.unpack(f"<{len(data) // 4}f", data)) for data in raw]


def descriptions(file: pathlib.Path) -> list[str]:
    """The texts of one split, in file order."""
    return [json.loads(line)["description"] for line in file.read_text(encoding="utf-8").splitlines()]
