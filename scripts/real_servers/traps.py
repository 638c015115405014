"""Run harvest against every server and say, trap by trap, what was sent, what came back and how harvest took it.

usage: traps.py WORK HARVEST_BINARY     (the servers as `serve` starts them; the configurations copied into WORK)

Exits with 1 where an expectation is not met.
"""

import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import Any

import cache

WORK, HARVEST = pathlib.Path(sys.argv[1]), sys.argv[2]
VOCABULARY = 4096
# A cold prompt and the same prompt cached give different sums; observed.md has how different.
COLD_AGAINST_CACHED = 0.1
Exchange = dict[str, Any]
results: list[tuple[str, bool]] = []


def short(text: str, width: int = 200) -> str:
    text = re.sub(r"base64,[A-Za-z0-9+/=]{24,}", "base64,...", text)
    text = re.sub(r"(word ){5,}", "word word ... ", text)
    return text if len(text) <= width else text[: width - 3] + "..."


def harvest(*arguments: str) -> tuple[int, str]:
    """Exit status and everything it printed."""
    done = subprocess.run([HARVEST, *arguments], cwd=WORK, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, done.stdout + done.stderr


def last_words(printed: str) -> str:
    lines = [line for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error", "hint"))]
    return short(" | ".join(errors or lines[-2:]), 400)


class Record:
    """What went through a recorder since this was made."""

    def __init__(self, name: str) -> None:
        self.file = WORK / "records" / f"{name}.jsonl"
        self.start = self.file.stat().st_size if self.file.exists() else 0

    def exchanges(self) -> list[Exchange]:
        if not self.file.exists():
            return []
        with self.file.open(encoding="utf-8") as file:
            file.seek(self.start)
            return [json.loads(line) for line in file]


def show(title: str, exchange: Exchange | None, took: str, expectations: dict[str, bool]) -> None:
    """One item: what was sent, what came back, how harvest took it, and whether that is right."""
    met = all(expectations.values())
    print(f"\n{title}")
    if exchange is None:
        print("  sent     nothing")
    else:
        print(f"  sent     POST {exchange['path']} {short(exchange['request'])}")
        print(f"  back     {exchange['status']}, {exchange['bytes']:,} bytes: {short(exchange['body'])}")
    print(f"  harvest  {took}")
    for name, fulfilled in expectations.items():
        if not fulfilled:
            print(f"  not so:  {name}")
    print(f"  {'PASS' if met else 'FAIL'}", flush=True)
    results.append((title, met))


def fresh(name: str) -> pathlib.Path:
    folder = WORK / "caches" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def run_whole(
    name: str, server: str, num_rows: int
) -> tuple[list[dict[str, Any]], list[Exchange], dict[str, bool], str]:
    """check, run, run again, verify, freeze: the rows, what went over the wire, and what held."""
    folder, record = fresh(name), Record(server)
    config = f"{name}.toml"
    checked, printed = harvest("check", config)
    held = {"check ends with 0": checked == 0}
    after_check = len(record.exchanges())
    ran, run_printed = harvest("run", config)
    held["run ends with 0"] = ran == 0
    sent = len(record.exchanges())
    held["at most one request a row"] = 0 < sent - after_check <= num_rows
    harvest("run", config)
    held["a second run asks nothing"] = len(record.exchanges()) == sent
    verified, _ = harvest("verify", config)
    frozen, frozen_printed = harvest("freeze", config)
    held["verify and freeze end with 0"] = (verified, frozen) == (0, 0)
    if not record.exchanges():
        raise RuntimeError(f"harvest asked nothing: {last_words(printed)} | {last_words(run_printed)}")
    rows = cache.rows(folder)
    held[f"{num_rows} rows are in the cache"] = len({row["example_id"] for row in rows}) == len(rows) == num_rows
    digest = re.search(r"sha256:[0-9a-f]{12}", frozen_printed)
    took = f"{len(rows)} rows of {num_rows}, {digest[0] if digest else last_words(printed + run_printed)}..."
    return rows, record.exchanges(), held, took


def run_failing(name: str, server: str) -> tuple[int, str, list[Exchange], list[dict[str, Any]], list[dict[str, Any]]]:
    """`run` alone, where rows are to fail."""
    folder, record = fresh(name), Record(server)
    status, printed = harvest("run", f"{name}.toml")
    return status, printed, record.exchanges(), cache.rows(folder), cache.failures(folder)


def most_often(exchanges: list[Exchange]) -> int:
    """How often the request that was repeated most was sent."""
    return max(Counter(exchange["request"] for exchange in exchanges).values(), default=0)


def first_position(exchange: Exchange) -> list[dict[str, Any]]:
    position: dict[str, Any] = json.loads(exchange["body"])["choices"][0]["logprobs"]["content"][0]
    entries: list[dict[str, Any]] = position["top_logprobs"]
    return entries


def chat_text() -> None:
    rows, exchanges, held, took = run_whole("chat_text", "chat", 24)
    held["every row has text"] = all(row["text"] for row in rows)
    show("chat, text (llama-server)", exchanges[-1], took, held)


def chat_image() -> None:
    rows, exchanges, held, took = run_whole("chat_image", "chat", 12)
    held["the picture went as a data URI"] = all("data:image/png;base64," in one["request"] for one in exchanges)
    # The question alone is 17 tokens; a picture is 16 patches.
    held["the picture counts as tokens"] = all(row["tokens_in"] >= 33 for row in rows)
    texts = len({row["text"] for row in rows})
    held["replies depend on the picture"] = texts > 1
    show("chat, image (llama-server)", exchanges[-1], f"{took} {texts} different replies to one question", held)


def logprobs() -> None:
    rows, exchanges, held, took = run_whole("logprobs", "chat", 24)
    kept = [cache.top_k(row["logprobs"]) for row in rows]
    held["every position has the whole vocabulary"] = bool(kept) and all(
        len({entry.id for entry in position.entries}) == VOCABULARY for row in kept for position in row
    )
    mass = [
        position.rest + sum(math.exp(entry.logprob) for entry in position.entries) for row in kept for position in row
    ]
    held["probabilities add up to 1"] = bool(mass) and all(abs(total - 1.0) < 1e-3 for total in mass)
    show("logprobs, full vocabulary (llama-server)", exchanges[-1], f"{took} {len(mass)} positions", held)

    asked = first_position(exchanges[-1])
    ids, texts, as_bytes = (len({json.dumps(entry[key]) for entry in asked}) for key in ("id", "token", "bytes"))
    stored = {len({entry.id for entry in position.entries}) for row in kept for position in row}
    by_id = {entry["id"]: entry["logprob"] for entry in asked}
    same = any(
        all(
            math.isclose(by_id[entry.id], entry.logprob, abs_tol=1e-5)
            for entry in row[0].entries
            if entry.id is not None
        )
        for row in kept
    )
    show(
        "trap 1: token text is not a key",
        exchanges[-1],
        f"the answer has {ids} ids, {texts} different texts, {as_bytes} different byte strings; kept: {stored} ids a position",
        {"texts repeat": texts < ids, "no id is lost": stored == {VOCABULARY}, "values are the server's": same},
    )

    entries = sum(
        len(position["top_logprobs"])
        for position in json.loads(exchanges[-1]["body"])["choices"][0]["logprobs"]["content"]
    )
    wire = exchanges[-1]["bytes"] / entries
    disk = sum(shard.stat().st_size for shard in (WORK / "caches/logprobs").glob("part-*.parquet"))
    per_entry = disk / sum(len(position.entries) for row in kept for position in row) if kept else 0.0
    show(
        "trap 6: the size of full-vocabulary logprobs",
        exchanges[-1],
        f"{wire:.0f} bytes an entry as JSON, {wire * 152_000 / 1e6:.1f} MB a token at 152,000 entries; "
        f"{per_entry:.1f} bytes an entry in the shard, bytes of the tokens included",
        {"a shard is smaller than a fifth": 0 < per_entry < wire / 5},
    )


def class_logits() -> None:
    rows, exchanges, held, took = run_whole("class_logits", "chat", 24)
    logits = [row["class_logits"] for row in rows]
    held["two finite logits a row"] = all(len(pair) == 2 and all(map(math.isfinite, pair)) for pair in logits)
    begins = [
        sum(
            math.exp(entry["logprob"])
            for entry in first_position(exchanges[-1])
            if (text := entry["token"].lstrip()) and any(word.startswith(text) for word in words)
        )
        for words in (("no", "No"), ("yes", "Yes"))
    ]
    expected = [math.log(mass) for mass in begins]
    held["the last reply's logits are those of its entries"] = any(
        all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(pair, expected, strict=True)) for pair in logits
    )
    shown = ", ".join(f"{value:.3f}" for value in expected)
    show("class logits (llama-server)", exchanges[-1], f"{took} logits of the last reply: {shown}", held)


def completions() -> None:
    rows, exchanges, held, took = run_whole("completions", "chat", 24)
    kept = [cache.top_k(row["logprobs"]) for row in rows]
    held["every position has the whole vocabulary"] = bool(kept) and all(
        len({entry.id for entry in position.entries}) == VOCABULARY for row in kept for position in row
    )
    show("completions, full vocabulary (llama-server)", exchanges[-1], took, held)


def cold_and_cached() -> None:
    rows, exchanges, held, _ = run_whole("logprobs_again", "chat", 24)
    earlier = {row["example_id"]: cache.top_k(row["logprobs"]) for row in cache.rows(WORK / "caches/logprobs")}
    differences = []
    for row in rows:
        now, before = cache.top_k(row["logprobs"])[0], earlier[row["example_id"]][0]
        logprob = {entry.id: entry.logprob for entry in before.entries}
        differences.append(max(abs(entry.logprob - logprob[entry.id]) for entry in now.entries))
    cached = json.loads(exchanges[-1]["body"])["usage"]["prompt_tokens_details"]["cached_tokens"]
    largest = max(differences, default=math.inf)
    held[f"they differ by less than {COLD_AGAINST_CACHED}"] = largest < COLD_AGAINST_CACHED
    status, printed = harvest("verify", "logprobs.toml", "--replay", "8")
    held["verify --replay ends with 0"] = status == 0
    replay = " | ".join(
        line for line in printed.splitlines() if "replay" in line or "differ" in line or "noise" in line
    )
    show(
        "trap 2: the same prompt cold and cached",
        exchanges[-1],
        f"{cached} tokens of the last prompt were cached; first positions of {len(rows)} rows differ by up to "
        f"{largest:.1e} from the first run; verify --replay: {short(replay or last_words(printed), 300)}",
        held,
    )


def embeddings() -> None:
    rows, exchanges, held, took = run_whole("embeddings", "embeddings", 24)
    widths = {len(row["feature"]) for row in rows}
    held["vectors have 64 numbers"] = widths == {64}
    held["all are finite"] = all(math.isfinite(value) for row in rows for value in row["feature"])
    show("embeddings (llama-server)", exchanges[-1], f"{took} width {widths}", held)


def transformers() -> None:
    rows, exchanges, held, took = run_whole("transformers", "transformers", 24)
    held["every row has text"] = all(row["text"] for row in rows)
    other = {row["example_id"]: row["text"] for row in cache.rows(WORK / "caches/chat_text")}
    alike = sum(row["text"] == other.get(row["example_id"]) for row in rows)
    show("chat, text (transformers serve)", exchanges[-1], f"{took} {alike} replies are llama-server's too", held)


def always_500() -> None:
    for name, server, tries, answered in (
        ("trap3_physical_batch", "embeddings", 3, 2),
        ("trap3_no_projector", "rounded", 2, 0),
    ):
        status, printed, exchanges, rows, failed = run_failing(name, server)
        refused = [one for one in exchanges if one["status"] == 500]
        show(
            f"trap 3: 500 for ever ({name.removeprefix('trap3_')})",
            refused[0] if refused else None,
            f"{len(exchanges)} requests, each at most {most_often(refused)} times; {len(rows)} rows kept, "
            f"{len(failed)} failures {sorted({row['class'] for row in failed})}; exit {status}: {last_words(printed)}",
            {
                "the server says 500": bool(refused),
                f"a row is sent at most {tries} times": most_often(exchanges) <= tries,
                "the other rows are kept": len(rows) == answered,
                "failures are listed": bool(failed),
                "the exit status says so": status in (1, 3),
            },
        )


def deterministic_refusals() -> None:
    for name, server, code, answered in (
        ("trap4_overflow", "chat", 400, 2),
        ("trap4_missing_ability", "chat", 501, 0),
        ("trap4_unknown_field", "transformers", 422, 0),
    ):
        status, printed, exchanges, rows, failed = run_failing(name, server)
        refused = [one for one in exchanges if one["status"] == code]
        classes = {row["class"] for row in failed}
        show(
            f"trap 4: {code} ({name.removeprefix('trap4_')})",
            refused[0] if refused else None,
            f"{len(exchanges)} requests, none more than {most_often(refused)} times; {len(rows)} rows kept, "
            f"{len(failed)} failures {sorted(classes)}; exit {status}: {last_words(printed)}",
            {
                f"the server says {code}": bool(refused),
                "it is not asked again": most_often(refused) == 1,
                # What a server does not have, it has for no row: that is told at the first request, and no row is blamed.
                "failures are listed as deterministic": code == 501 or classes == {"deterministic"},
                "a missing ability costs one request": code != 501 or (len(exchanges), classes) == (1, set()),
                "the other rows are kept": len(rows) == answered,
                "the exit status says so": status in (1, 3),
            },
        )


def ignored_logprobs() -> None:
    name = "trap5_ignored_logprobs"
    fresh(name)
    record = Record("transformers")
    status, printed = harvest("check", f"{name}.toml")
    exchanges = record.exchanges()
    body = json.loads(exchanges[0]["body"]) if exchanges else {}
    show(
        "trap 5: logprobs ignored (transformers serve), check",
        exchanges[0] if exchanges else None,
        f"exit {status}: {last_words(printed)}",
        {
            "the server says 200 without logprobs": bool(body) and "logprobs" not in body["choices"][0],
            "check refuses": status == 1,
            "the refusal names logprobs": "logprobs" in printed,
            "few requests are spent": 0 < len(exchanges) <= 5,
        },
    )
    status, printed, exchanges, rows, failed = run_failing(name, "transformers")
    show(
        "trap 5: logprobs ignored (transformers serve), run",
        exchanges[0] if exchanges else None,
        f"{len(exchanges)} requests, {len(rows)} rows kept, {len(failed)} failures; exit {status}: {last_words(printed)}",
        {
            "no row is kept without its signal": not rows,
            "the run stops early": 0 < len(exchanges) < 24,
            "nothing is asked twice": most_often(exchanges) <= 1,
            "the exit status says so": status in (1, 3),
        },
    )


def router() -> None:
    rows, exchanges, held, took = run_whole("trap7_router", "router", 24)
    served = Counter((row["served_model"], row["fingerprint"]) for row in rows)
    held["both served models stand in the rows"] = {model for model, _ in served} == {"tiny", "tiny-q8_0"}
    held["fingerprints are kept"] = all(fingerprint for _, fingerprint in served)
    said = Counter(json.loads(one["body"])["model"] for one in exchanges)
    show(
        "trap 7: one name, two quantisations",
        exchanges[-1],
        f"{took} asked for `tiny`, answered as {dict(said)}; kept (served_model, fingerprint): {dict(served)}",
        held,
    )


def main() -> None:
    items = [
        chat_text, chat_image, logprobs, class_logits, completions, cold_and_cached, embeddings, transformers,
        always_500, deterministic_refusals, ignored_logprobs, router,
    ]  # fmt: skip
    for item in items:
        try:
            item()
        except Exception as error:  # an item that breaks must not hide the others
            show(item.__name__, None, f"{type(error).__name__}: {error}", {"the item could be shown": False})
    print("\nsummary")
    for title, met in results:
        print(f"  {'PASS' if met else 'FAIL'}  {title}")
    failed = sum(not met for _, met in results)
    print(f"\n{len(results) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
