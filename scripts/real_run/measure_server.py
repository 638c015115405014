"""Embeddings a second of the server alone, over texts of the data set.

usage: measure_server.py DATA_FOLDER [NUM_TEXTS]     (SERVER_URL as `serve` sets it)
"""

import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from embeddings_client import descriptions, embed


def main() -> None:
    num_texts = int(sys.argv[2]) if len(sys.argv) > 2 else 512
    texts = descriptions(pathlib.Path(sys.argv[1]) / "train.jsonl")[:num_texts]
    embed(texts[:16])
    print(f"{'requests in flight':>18} {'texts a request':>16} {'seconds':>8} {'texts a second':>15}")
    for in_flight, per_request in ((1, 1), (2, 1), (4, 1), (8, 1), (1, 8), (2, 8), (2, 32)):
        requests = [texts[start : start + per_request] for start in range(0, len(texts), per_request)]
        begin = time.perf_counter()
        with ThreadPoolExecutor(in_flight) as pool:
            num_rows = sum(len(rows) for rows in pool.map(embed, requests))
        seconds = time.perf_counter() - begin
        print(f"{in_flight:>18} {per_request:>16} {seconds:>8.1f} {num_rows / seconds:>15.1f}")


if __name__ == "__main__":
    main()
