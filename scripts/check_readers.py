"""Opens shards in the programs that people use, and checks that the values are right. See `check_readers`."""

import datetime
import hashlib
import json
import math
import pathlib
import sys
import tempfile

MODULES = ["pyarrow", "duckdb", "polars", "datasets"]
try:
    import datasets
    import duckdb
    import polars
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    sys.exit(f"error: {error}\nhint: {sys.executable} -m pip install {' '.join(MODULES)}")

FIXTURE = pathlib.Path(__file__).parent.parent / "tests/fixtures/shard"


def plain(value):
    """Lists, numbers, text and hexadecimal digits, whatever a program hands out; times are milliseconds since 1970."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime.datetime):
        return round(value.timestamp() * 1000)
    return bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else value


def by_pyarrow(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def by_duckdb(path):
    cursor = duckdb.connect().execute("select * from read_parquet(?)", [str(path)])
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor.fetchall()]


def by_polars(path):
    return polars.read_parquet(path).to_dicts()


def by_datasets(path):
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
        return list(loaded)


READERS = {"pyarrow": by_pyarrow, "duckdb": by_duckdb, "polars": by_polars, "datasets": by_datasets}


def rows(read, path):
    return [{name: plain(value) for name, value in row.items()} for row in read(path)]


def difference(found, expected):
    """The first place where rows differ, or None. Floats are compared exactly: they are stored ones."""
    if len(found) != len(expected):
        return f"{len(found)} rows, expected {len(expected)}"
    for number, (row, wanted) in enumerate(zip(found, expected)):
        if list(row) != list(wanted):
            return f"columns {list(row)}, expected {list(wanted)}"
        for name, value in wanted.items():
            if row[name] != value:
                return f"row {number}, column {name}: {row[name]!r}, expected {value!r}"
    return None


def in_order(row, names):
    return {name: row[name] for name in names if name in row}


def check(path, expected):
    """Compares what every program reads with `expected`, or with what pyarrow reads where there is nothing expected."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    failed = digest[:16] != path.stem.rsplit("-", 1)[-1]
    if failed:
        print(f"FAIL {path.name}: its SHA-256 starts with {digest[:16]}")
    for program, read in READERS.items():
        found = rows(read, path)
        if expected is None:
            expected = found
            numbers = [x for row in found for cell in row.values() if isinstance(cell, list) for x in cell]
            if not all(math.isfinite(x) for x in numbers):
                failed = True
                print(f"FAIL {path.name}: a vector holds a number that is not finite")
        problem = difference(found, [in_order(row, found[0]) for row in expected] if found else expected)
        failed |= problem is not None
        print(f"{'ok  ' if problem is None else 'FAIL'} {path.name}: {program}: {problem or f'{len(found)} rows'}")
    return not failed


def main():
    datasets.disable_progress_bars()
    fixture, = FIXTURE.glob("*.parquet")
    versions = ", ".join(f"{name} {sys.modules[name].__version__}" for name in MODULES)
    print(versions)
    good = check(fixture, json.loads((FIXTURE / "expected.json").read_text()))
    for argument in map(pathlib.Path, sys.argv[1:]):
        shards = sorted(argument.glob("*.parquet")) if argument.is_dir() else [argument]
        if not shards:
            sys.exit(f"error: `{argument}` has no shard in it\nhint: name a .parquet file or a cache folder")
        good = all([check(shard, None) for shard in shards]) and good
    sys.exit(0 if good else 1)


main()
