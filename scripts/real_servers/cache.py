"""Read what harvest kept: rows, failures, and packed token log-probabilities (docs/cache-format.md)."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

NO_ID = 2**32 - 1
NO_BYTES = 2**16 - 1
HAS_IDS, HAS_BYTES, HAS_CHOSEN = 1, 2, 4


class Entry(NamedTuple):
    id: int | None
    bytes: bytes | None
    logprob: float


class Position(NamedTuple):
    chosen: Entry | None
    entries: list[Entry]
    rest: float


def rows(cache: pathlib.Path) -> list[dict[str, Any]]:
    """Every row of every shard."""
    return [row for shard in sorted(cache.glob("part-*.parquet")) for row in pq.read_table(shard).to_pylist()]


def failures(cache: pathlib.Path) -> list[dict[str, Any]]:
    return [row for file in sorted(cache.glob("failures*.parquet")) for row in pq.read_table(file).to_pylist()]


def top_k(packed: bytes) -> list[Position]:
    """Layout 2 of a packed top-k."""
    version, flags = packed[0], packed[1]
    if version != 2:
        raise ValueError(f"layout {version}, not 2")
    at = 2

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(packed, dtype=kind, count=count, offset=at)
        at += values.nbytes
        return values

    (positions,) = take("<u4", 1)
    counts, rest = take("<u4", positions), take("<f4", positions)
    chosen = positions if flags & HAS_CHOSEN else 0
    total = int(chosen) + int(counts.sum())
    logprobs = take("<f4", total)
    ids = take("<u4", total) if flags & HAS_IDS else None
    lengths = take("<u2", total) if flags & HAS_BYTES else None
    texts: list[bytes | None] = [None] * total
    if lengths is not None:
        for index, length in enumerate(lengths):
            if length != NO_BYTES:
                texts[index] = packed[at : at + int(length)]
                at += int(length)
    if at != len(packed):
        raise ValueError(f"{len(packed) - at} bytes are left over")
    tokens = [
        Entry(None if ids is None or ids[i] == NO_ID else int(ids[i]), texts[i], float(logprobs[i]))
        for i in range(total)
    ]
    result, start = [], int(chosen)
    for index, count in enumerate(counts):
        first = tokens[index] if chosen else None
        result.append(Position(first, tokens[start : start + int(count)], float(rest[index])))
        start += int(count)
    return result
