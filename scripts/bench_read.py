"""Times reading a cache of f16 features: Armada against pyarrow. See `bench_read`."""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

try:
    import pyarrow
    import pyarrow.parquet
except ImportError as error:
    sys.exit(f"error: {error}\nhint: {sys.executable} -m pip install pyarrow")

NUM_ROUNDS = 5
COLUMNS = ["example_id", "draw", "feature"]


def time_pyarrow(paths, threads):
    start = time.perf_counter()
    num_rows = sum(pyarrow.parquet.read_table(path, columns=COLUMNS, use_threads=threads).num_rows for path in paths)
    return time.perf_counter() - start, num_rows


def time_pyarrow_at_once(paths):
    """All files in one call, which pyarrow decodes in parallel."""
    start = time.perf_counter()
    num_rows = pyarrow.parquet.read_table(paths, columns=COLUMNS).num_rows
    return time.perf_counter() - start, num_rows


def time_armada(program, folder):
    out = subprocess.run([program, "read", folder], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def main():
    program, num_rows, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    best = {}

    def note(name, seconds):
        best[name] = min(seconds, best.get(name, seconds))

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, "write", folder, str(num_rows), str(width)], check=True)
        paths = sorted(pathlib.Path(folder).glob("*.parquet"))
        size = sum(path.stat().st_size for path in paths)
        for _ in range(NUM_ROUNDS):
            figures = time_armada(program, folder)
            assert (figures["rows"], figures["values"]) == (num_rows, num_rows * width), figures
            note("armada", figures["seconds"])
            note("armada, digest checked", figures["seconds_verified"])
            timed = {
                "pyarrow": time_pyarrow(paths, True),
                "pyarrow, one thread": time_pyarrow(paths, False),
                "pyarrow, files at once": time_pyarrow_at_once(paths),
            }
            for name, (seconds, rows) in timed.items():
                assert rows == num_rows, rows
                note(name, seconds)
    megabytes = num_rows * width * 2 / 1e6
    print(f"{num_rows:,} rows x {width:,} f16 = {megabytes:,.0f} MB in {len(paths)} files of {size / 1e6:,.0f} MB; "
          f"pyarrow {pyarrow.__version__} on {pyarrow.cpu_count()} threads; best of {NUM_ROUNDS}")
    print(f"{'reader':24} {'seconds':>8} {'rows/s':>12} {'MB/s':>8} {'of pyarrow':>11}")
    for name, seconds in best.items():
        ratio = best["pyarrow"] / seconds
        print(f"{name:24} {seconds:8.3f} {num_rows / seconds:12,.0f} {megabytes / seconds:8,.0f} {ratio:11.2f}")


main()
