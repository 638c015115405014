#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets: for each target one input of every form that its reader understands.

Inputs that once failed lie beside them under names that start with `found-`, and stay.
"""

import base64
import json
import pathlib
import struct
import zlib

HERE = pathlib.Path(__file__).parent
REPOSITORY = HERE.parent.parent


def put(target, *seeds):
    """Writes the seeds of a target in place of those of an earlier version."""
    folder = HERE / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("seed-*"):
        old.unlink()
    for number, seed in enumerate(seeds):
        text = seed if isinstance(seed, (bytes, str)) else json.dumps(seed)
        (folder / f"seed-{number:02}").write_bytes(text.encode() if isinstance(text, str) else text)


def case(number, reply):
    """An input whose first byte chooses the case."""
    return f"{number}{json.dumps(reply, ensure_ascii=False)}"


def position(text, top, ids=True):
    """A position of log-probabilities as OpenAI and llama.cpp write it."""

    def token(text, logprob, number):
        written = {"token": text, "bytes": list(text.encode()), "logprob": logprob}
        return {"id": number, **written} if ids else written

    first = token(text, top[0][1], 1)
    return {**first, "top_logprobs": [token(*pair, number) for number, pair in enumerate(top)]}


CLASSES = [("positive", -0.2), (" neg", -2.0), ("\n", -5.0)]
WORDS = [("red", -0.1), ("blue", -3.0)]
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11.0}
WRAPPED = {"error": {"code": 429, "message": "slow down"}}


def chat(content, positions=None, **choice):
    logprobs = {"content": positions} if positions is not None else None
    return {
        "id": "x",
        "model": "m-1",
        "system_fingerprint": "fp",
        "usage": USAGE,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content},
                     "logprobs": logprobs, **choice}],
    }


def chats():
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}]
    yield case(0, chat("red"))
    yield case(0, chat(parts))
    yield case(0, chat(None, finish_reason="length"))
    yield case(0, chat("", message={"content": None, "refusal": "I cannot."}))
    yield case(0, chat("x", finish_reason="content_filter"))
    yield case(1, chat("red", [position("red", WORDS), position("token_id:7", [("bytes:\\xe2\\x80", -0.7)], ids=False)]))
    yield case(1, chat("red", [position("red", [("red", -9999.0)])]))
    yield case(2, chat("positive", [position("positive", CLASSES)]))
    yield case(3, chat("positive", [position("positive", CLASSES[:1])]))
    yield case(0, WRAPPED)
    yield "0<html>504</html>"
    yield '1{"choices":[{"logprobs":{"content":[{"logprob":NaN}]}}]}'


def completions():
    scored = [None, {"5": {"logprob": -1.0, "rank": 1, "decoded_token": "What"}},
              {"6": {"logprob": -2.0, "rank": 3, "decoded_token": " is"}, "7": {"logprob": -0.5, "rank": 1}}]
    lists = {"tokens": ["What", " is", "it?", "x"], "token_logprobs": [None, -1.0, -0.5, -0.3],
             "top_logprobs": [None, {" is": -1.0, "bytes:\\xe2": -2.0}, {"it?": -0.5}, {"x": -0.3}],
             "text_offset": [0, 4, 8, 11]}

    def reply(*choices):
        return {"model": "m", "usage": USAGE, "choices": list(choices)}

    text = {"index": 0, "text": " it", "finish_reason": "stop"}
    yield case(0, reply({**text, "logprobs": {"tokens": ["token_id:5"], "token_logprobs": [-0.1],
                                              "top_logprobs": [{"token_id:5": -0.1}]},
                         "prompt_logprobs": scored, "prompt_token_ids": [4, 5, 6]}))
    word = {"text": "x", "prompt_logprobs": scored, "prompt_token_ids": [4, 5, 6]}
    other = {"text": "x", "prompt_token_ids": [4, 5, 9],
             "prompt_logprobs": [*scored[:2], {"9": {"logprob": -3.0, "rank": 4}}]}
    yield case(1, reply({"index": 1, **other}, {"index": 0, **word}))
    yield case(2, reply({**text, "logprobs": lists}))
    yield case(3, reply({**text, "logprobs": {**lists, "text_offset": None}}))
    yield case(3, reply({**text, "logprobs": {"content": [position("a", WORDS)]}}))
    yield case(4, reply({"index": 0, "text": "What is it? negativex", "logprobs": {
        "tokens": ["What is it?", " negative", "x"], "token_logprobs": [None, -1.0, -0.3],
        "top_logprobs": [None, {" negative": -1.0}, {"x": -0.3}]}},
        {"index": 1, "text": "What is it? positivex", "logprobs": {
            "tokens": ["What is it?", " positive", "x"], "token_logprobs": [None, -2.0, -0.3],
            "top_logprobs": [None, {" positive": -2.0}, {"x": -0.3}]}}))
    llama = {"content": "red", "model": "m", "stop_type": "eos", "tokens_predicted": 1, "tokens_evaluated": 3,
             "truncated": False}
    yield case(5, {**llama, "completion_probabilities": [position("red", WORDS)]})
    yield case(5, {**llama, "truncated": True})
    yield case(6, {**llama, "completion_probabilities": [position("positive", CLASSES)]})
    yield case(5, WRAPPED)


def vectors():
    packed = base64.b64encode(struct.pack("<2f", 1.5, -2)).decode()
    for number, data in [(0, [[1, 2.5, -3e-2]]), (0, [packed]), (1, [[1, 2], [3, None], packed]),
                         (2, [[[1, 2], [3, 4]], [[1, 2]]]), (3, [[[1, 2], [3, 4]], None]), (1, [[1, 2], [3, 4, 5], "AAAA"])]:
        yield number, data


def embeddings():
    for number, data in vectors():
        items = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(data)]
        yield case(number, {"data": items[::-1], "model": "m", "usage": {"prompt_tokens": 5}})
    yield case(0, {"data": [{"embedding": [1e39]}]})
    yield case(0, WRAPPED)


def tei():
    for number, data in vectors():
        yield case(number, data)
    yield case(0, {"error": "what happened", "error_type": "overloaded"})


def gemini():
    chosen = [{"token": "red", "tokenId": 7, "logProbability": -0.1}]
    top = [{"candidates": [*chosen, {"token": "blue", "tokenId": 8, "logProbability": -3}]}]
    candidate = {"content": {"parts": [{"text": "hm", "thought": True}, {"text": "red"}]}, "finishReason": "STOP",
                 "logprobsResult": {"chosenCandidates": chosen, "topCandidates": top}}
    counts = {"promptTokenCount": 4, "candidatesTokenCount": 1, "thoughtsTokenCount": 2}
    whole = {"candidates": [candidate], "usageMetadata": counts, "modelVersion": "g-1"}
    yield case(0, whole)
    yield case(1, whole)
    yield case(0, {"promptFeedback": {"blockReason": "SAFETY"}})
    yield case(0, {"candidates": [{"finishReason": "SAFETY", "finishMessage": "no"}]})
    yield case(2, {"embeddings": [{"values": [1, 2.5]}]})
    yield case(3, {"embeddings": [{"values": [1, 2]}, {"values": [3, None]}, {"values": []}]})


def ollama():
    whole = {"model": "m", "done": True, "done_reason": "stop", "prompt_eval_count": 4, "eval_count": 1,
             "message": {"role": "assistant", "content": "red"}, "logprobs": [position("red", WORDS, ids=False)]}
    yield case(0, whole)
    yield case(1, whole)
    yield case(1, {**whole, "done": False})
    yield case(2, {"model": "m", "embeddings": [[1, 2.5]], "prompt_eval_count": 4})
    yield case(3, {"embeddings": [[1, 2], [3, 4], [5, None]]})


def anthropic():
    whole = {"type": "message", "model": "c", "stop_reason": "end_turn",
             "usage": {"input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 2},
             "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "red"}]}
    yield case(0, whole)
    yield case(0, {"content": [], "stop_reason": "refusal"})
    yield case(0, {"content": [], "stop_reason": "max_tokens"})


def png(width=2, height=1, body=None):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\xff\x00\x80" * width for _ in range(height)) if body is None else body
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def images():
    data = base64.b64encode(png()).decode()
    usage = {"input_tokens": 3, "output_tokens": 99}
    yield {"data": [{"b64_json": data, "revised_prompt": "a red dot"}], "usage": usage, "model": "m"}
    yield {"data": [{"url": "http://127.0.0.1/a.png"}]}
    yield {"data": [{"b64_json": f"data:image/png;base64,{data}"}]}
    yield {"images": [data], "info": json.dumps({"sd_model_name": "sd", "sd_model_hash": "0a"})}


JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"
    "AQEBAQH/wAALCAABAAEBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAACf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AVN//2Q==")
WEBP = base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==")
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")


def pictures():
    yield from (png(), png(40, 30), png(60_000, 60_000, b""), JPEG, WEBP, GIF)
    yield "data:image/png;base64," + base64.b64encode(png()).decode()


def commands():
    # The example of the target is the bytes 0 to 0, asked in draw 0.
    whole = {"id": "0" * 32, "draw": 0}
    position = {"chosen": [5, -0.5], "entries": [[5, -0.5], [6, -2.0]], "remaining_mass": 0.1}
    signals = {"feature": [1, 2.5], "logits": [0.5, -1], "text": "red", "image": base64.b64encode(png()).decode(),
               "tokens": [position, {"entries": []}]}
    yield {"armada": 1}
    yield {"armada": 2}
    yield {**whole, "signals": signals, "provenance": {"served_model": "m", "tokens_in": 3}}
    for name, value in signals.items():
        yield {**whole, "signals": {name: value}}
    yield {**whole, "signals": {"feature": base64.b64encode(struct.pack("<2f", 1, 2)).decode()}}
    yield {**whole, "error": {"class": "rate", "message": "slow\ndown"}}


def batches():
    def line(row, body, status=200, **further):
        head = {"custom_id": f"{bytes([row] * 16).hex()}-0"}
        return json.dumps({**head, "response": {"status_code": status, "body": body}, **further})

    vector = {"data": [{"index": 0, "embedding": [1, 2.5]}]}
    yield "\n".join([line(2, vector), line(0, vector), line(0, vector), "no JSON", line(9, vector)])
    refused = {"error": {"message": "bad key @KEY@", "code": "invalid_api_key"}}
    yield line(0, refused, 401) + "\n----\n" + line(1, None, 0, error={"code": "batch_expired", "message": "too late"})
    yield line(1, {"error": {"code": 401, "message": "bad key @KEY@"}}) + "\n" + line(2, {"data": "@KEY@"})
    yield "x" * 300 + line(1, vector)


def states():
    batch = {"id": "b", "status": "failed", "input_file_id": "f", "metadata": {"armada_batch": "n"}, "completed_at": 5,
             "request_counts": {"total": 3, "completed": 1, "failed": 1},
             "errors": {"data": [{"code": "token_limit_exceeded", "message": "too much", "line": 2}]}}
    yield batch
    row = "00" * 16 + "-0-" + "0" * 16
    yield {"version": 1, "name": "n", "rows": [row], "stage": "created", "batch": "b"}
    yield {"version": 1, "name": "n", "rows": [row], "stage": "collected",
           "ended": {"status": "failed", "at": 5, "problems": [{"message": "no"}]}}


def refusals():
    def refusal(status, headers, body):
        return f"{status}\n{headers}\n\n{body if isinstance(body, str) else json.dumps(body)}"

    yield refusal(429, "retry-after-ms: 12.5\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT\nx-should-retry: true",
                  {"error": {"message": "slow", "code": "insufficient_quota"}})
    yield refusal(429, "x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-requests: 6m0s\n"
                       "x-ratelimit-remaining-tokens: 5\nx-ratelimit-reset-tokens: 12ms", WRAPPED)
    yield refusal(529, "anthropic-ratelimit-requests-remaining: 0\n"
                       "anthropic-ratelimit-requests-reset: 2026-01-01T00:00:00Z", {"type": "error"})
    yield refusal(503, "ratelimit-remaining: -1\nratelimit-reset: 1767225600000", {"detail": [{"msg": "no"}]})
    yield refusal(401, "a: b", {"error": "no such key: @KEY@"})
    yield refusal(500, "a: b", "<html>" + "word " * 57 + "@KEY@ is not known</html>")
    delay = {"@type": "RetryInfo", "retryDelay": "3.5s", "reason": "API_KEY_INVALID"}
    yield refusal(400, "a: b", {"error": {"status": "INVALID_ARGUMENT", "message": "no", "details": [delay]}})
    yield refusal(400, "a: b", {"error": {"type": "exceed_context_size_error", "code": 400, "message": "long"}})


SERVER = 'url = "http://127.0.0.1:1/v1"\nmodel = "m"\n'


def configurations():
    head = '[dataset]\npath = "."\n[cache]\npath = "c"\ndtype = "f32"\n'
    for kind, further in [
        ("chat", 'signals = ["text", "logprobs"]\ntop_logprobs = 5\ntemperature = 0.5\noptions = {a = 1}\n'),
        ("chat", 'signals = ["class_logits"]\nlabels = {negative = "no", positive = ["yes", "Yes"]}\n'),
        ("completions", 'dialect = "vllm"\nsignals = ["prompt_logprobs"]\n'),
        ("embeddings", 'dimensions = 4\npool = "mean"\nencoding = "base64"\nbatch = 3\n'),
        ("gemini", 'use = "embed"\n'), ("ollama", "think = false\n"), ("anthropic", 'system = "s"\n'),
        ("tei", "normalize = false\n"),
        ("images", 'api = "openai"\nsize = "64x64"\n[teacher.encoder]\nkind = "builtin"\n'),
        ("batch", 'window = "24h"\n[teacher.of]\nkind = "embeddings"\n'),
        ("chat", 'api_key_env = "@KEY@"\n'), ("chat", 'headers = {a = "@KEY@"}\nsecret_headers = {b = "@KEY@"}\n'),
    ]:
        yield f'{head}[teacher]\nkind = "{kind}"\n{SERVER}{further}'
    yield (f'{head}[run]\nconcurrency = 4\ndraws = 2\nsplits = ["train"]\nmax_failure_share = 0.5\n[budget]\ncost = 1.5\n'
           '[teacher]\nkind = "command"\ncommand = ["a"]\nmodel = "m"\n'
           'signals = {f = {kind = "feature", meaning = "x"}, l = {kind = "logprobs", meaning = "y", k = 3}}\n')
    yield f'{head}[teachers.a]\nkind = "sketch"\n[teachers.b]\nkind = "tei"\n{SERVER}'
    yield f'{head}[import]\nkind = "npy"\npath = "x"\nmodel = "m"\npattern = "{{split}}/{{index}}.npy"\n'
    yield f'{head}[import]\nkind = "parquet"\npath = "x"\nmodel = "m"\n'


FEATURE = {"name": "feature", "kind": "feature", "width": 2, "dtype": "f16", "meaning": "x"}
MANIFEST = {
    "format_version": 1,
    "teacher": {"kind": "t", "model": "m", "settings": {}},
    "dataset": {"task": "t", "fields": ["a"], "prompt": "{a}"},
    "draws": 1,
    "signals": [FEATURE, {"name": "text", "kind": "text", "meaning": "y"}],
    "state": "open",
}
PROVENANCE = {"served_model": "m", "fingerprint": None, "finish_reason": None, "tokens_in": 3, "tokens_out": None,
              "cost": 0.5, "answered_at": 5, "tries": 1, "latency_ms": 2.5}


def top_k():
    two = struct.pack("<BBI2I2f", 2, 7, 2, 1, 0, 0.5, 1.0)
    two += struct.pack("<3f3I3H", -0.5, float("nan"), -0.25, 7, 0xFFFFFFFF, 8, 1, 0xFFFF, 2) + b"abc"
    yield two
    yield struct.pack("<BBI", 2, 0, 0)
    yield struct.pack("<BBIIff", 2, 0, 1, 1, 0.5, -1.0)


def record(draw=0):
    packed = base64.b64encode(next(iter(top_k()))).decode()
    return {"id": "01" * 16, "draw": draw, "provenance": PROVENANCE, "signals": {
        "feature": {"type": "vector", "value": base64.b64encode(struct.pack("<2f", 1, 2)).decode()},
        "text": {"type": "text", "value": "a\nb"},
        "image": {"type": "image", "value": "AAAA"},
        "tokens": {"type": "token_top_k", "value": packed}}}


def journals():
    manifest = json.dumps(MANIFEST)
    part = json.dumps({"part": "picture", **record()}, separators=(",", ":"))
    yield "\n".join([manifest, json.dumps(record()), part, "!0bad", json.dumps(record(1))])
    yield manifest
    yield json.dumps(record())


def work_files():
    part = json.dumps({"part": "picture", **record()}, separators=(",", ":"))
    yield "0" + part + "\n" + part + "\n!torn"
    failure = {"id": "01" * 16, "draw": 0, "class": "rate", "message": "no", "tries": 2, "text": "a", "failed_at": 5}
    yield "1" + json.dumps(failure) + "\n" + json.dumps({**failure, "draw": 1, "failed_at": None})
    amount = {"requests": 1, "tokens": 5, "cost": 7}
    yield "2" + "\n".join(map(json.dumps, [{"spent": {"spent": amount}}, {"reserve": {"id": 1, "most": amount}},
                                          {"settle": {"id": 1, "spent": amount}}]))


def manifests():
    yield MANIFEST
    for kind in [{"kind": "class_logits", "width": 3, "dtype": "f32"}, {"kind": "token_top_k", "k": 4}, {"kind": "image"}]:
        yield {**MANIFEST, "signals": [{"name": "s", "meaning": "x", **kind}],
               "notes": {"license": "mit", "terms": "x"}}
    yield {**MANIFEST, "signals": [{**FEATURE, "width": 0}]}
    yield {**MANIFEST, "signals": [FEATURE, FEATURE]}
    yield {**MANIFEST, "state": "frozen", "num_rows": 1, "digest": "sha256:" + "0" * 64, "shards": []}


def shards():
    fixture = next((REPOSITORY / "tests" / "fixtures" / "shard").glob("*.parquet")).read_bytes()
    yield b"0" + fixture
    yield b"1" + struct.pack("<I", 0x00_00_40)[:3] + b"\xff"
    yield b"1"
    for manifest in manifests():
        yield b"2" + json.dumps(manifest).encode()
    fields = [{**FEATURE, "width": 8}, {"name": "logits", "kind": "class_logits", "width": 3, "dtype": "f32", "meaning": ""},
              {"name": "top_tokens", "kind": "token_top_k", "k": 2, "meaning": ""},
              {"name": "caption", "kind": "text", "meaning": ""}, {"name": "picture", "kind": "image", "meaning": ""}]
    yield b"2" + json.dumps({**MANIFEST, "signals": fields}).encode()


def npys():
    def array(version, head, data):
        length = struct.pack("<H" if version == 1 else "<I", len(head))
        return b"\x93NUMPY" + bytes([version, 0]) + length + head.encode() + data

    yield array(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", struct.pack("<2f", 1, 2))
    yield array(2, "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2), }", struct.pack("<2d", 1, 2))
    yield array(3, "{'shape': (1, 2, 1), 'fortran_order': True, 'descr': '<f2'}", struct.pack("<2e", 1, 2))


def datasets():
    yield '0{"a": "x", "b": 1.5, "label": "yes"}\n\n{"a": null, "label": 1}\n{"a": [1], "b": "y", "label": 0}\n'
    yield '1a,b,label\n"x ""y"", z",2,yes\n"two\nlines",,1\nx\n'
    yield "2a\tb\tlabel\nx\t\"y\t1\r\n"
    fixture = REPOSITORY / "tests/fixtures/datasets/glue_parquet/cola/train-00000-of-00001.parquet"
    yield b"3" + fixture.read_bytes()
    yield ('4name = "t"\nfields = ["a"]\nlabel = "label"\nclasses = ["no", "yes"]\nmetric = "f1"\n'
           'template = {first = "{{{a}}}"}\n')


put("chat", *chats())
put("completions", *completions())
put("embeddings", *embeddings())
put("tei", *tei())
put("gemini", *gemini())
put("ollama", *ollama())
put("anthropic", *anthropic())
put("images", *images())
put("picture", *pictures())
put("command", *commands())
put("batch_results", *batches())
put("batch_state", *states())
put("refusal", *refusals())
put("configuration", *configurations())
put("journal", *journals())
put("work_files", *work_files())
put("npy", *npys())
put("top_k", *top_k())
put("manifest", *manifests())
put("shard", *shards())
put("dataset", *datasets())
put("failures_list", b"1", b"1" + struct.pack("<I", 0x00_00_40)[:3] + b"\xff", b"0PAR1")
