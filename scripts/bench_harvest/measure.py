"""Requests a second and peak resident memory of `harvest run` and of two Python clients, against one instant server.

Started by `run`, which says where everything is. Prints two Markdown tables; exits with 1 where a client lost a row.

A run's rate is counted by the server, from its first request to its last, so that start-up costs nobody anything; the
seconds of the whole process stand beside it. Peak memory is the kernel's high-water mark of the process (VmHWM), read
fifty times a second, and what `wait4` reports at its end. That includes the memory of this script from before the process
started, about 14 MiB, which is less than any of the processes takes.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.request
from typing import NamedTuple

WORK = pathlib.Path(os.environ["WORK"])
HARVEST = os.environ["HARVEST"]
SERVER = os.environ["SERVER"].split()
ROWS = int(os.environ["ROWS"])
PEER_ROWS = int(os.environ["PEER_ROWS"])
MEMORY_ROWS = [int(rows) for rows in os.environ["MEMORY_ROWS"].split()]
CONCURRENCY = int(os.environ["CONCURRENCY"])
STEPS = pathlib.Path(__file__).parent
MEMORY_REPEATS = int(os.environ.get("MEMORY_REPEATS", "3"))
FLAT = 1.10  # peak memory at any size against the smallest

TASK = """name = "rows"
fields = ["text"]
label = "label"
classes = ["no", "yes"]
metric = "accuracy"

[template]
first = "{text}"
"""


class Run(NamedTuple):
    name: str
    rows: int
    requests: int
    asking_seconds: float
    whole_seconds: float
    cpu_seconds: float
    peak_mib: float
    answers: int

    def rate(self) -> float:
        return (self.requests - 1) / self.asking_seconds if self.asking_seconds else 0.0


def write_rows(count: int) -> pathlib.Path:
    """A folder with `count` different rows; it is kept for the next time."""
    folder = WORK / f"rows_{count}"
    if not (folder / "train.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "task.toml").write_text(TASK)
        part = folder / "train.jsonl.part"
        with part.open("w") as file:
            for row in range(count):
                text = f"Row {row}: the small red circle is left of the blue square, and the green cross is above both."
                file.write(json.dumps({"text": text}) + "\n")
        part.rename(folder / "train.jsonl")
    return folder


def counted(url: str) -> tuple[int, float]:
    """Requests since the last call, and the seconds from the first to the last of them."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/requests") as response:
        answer = json.load(response)
    return answer["requests"], answer["seconds"]


def high_water(pid: int) -> int:
    """VmHWM in KiB; 0 where the process has just ended."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def run(name: str, url: str, rows: int, command: list[str], environment: dict[str, str] | None = None) -> Run:
    counted(url)
    log = WORK / f"{name}_{rows}.log"
    started = time.monotonic()
    peak_kib = 0
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | (environment or {}), cwd=WORK
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak_kib = max(peak_kib, high_water(process.pid))
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
    whole = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(f"error: {name} ended with {process.returncode}\nhint: read the end of {log}")
    requests, seconds = counted(url)
    cpu = usage.ru_utime + usage.ru_stime
    # The last peak falls between two samples; what the kernel counted in the end includes it.
    peak_kib = max(peak_kib, usage.ru_maxrss)
    return Run(name, rows, requests, seconds, whole, cpu, peak_kib / 1024, 0)


def harvest(url: str, rows: int) -> Run:
    folder = write_rows(rows)
    cache = WORK / f"cache_{rows}"
    shutil.rmtree(cache, ignore_errors=True)
    config = WORK / f"harvest_{rows}.toml"
    values = {"rows": folder.name, "cache": cache.name, "url": url, "concurrency": str(CONCURRENCY)}
    text = (STEPS / "harvest.toml").read_text()
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    config.write_text(text)
    done = run("harvest", url, rows, [HARVEST, "run", str(config)])
    status = subprocess.run([HARVEST, "verify", str(config)], capture_output=True, text=True, check=False)
    if status.returncode != 0:
        raise SystemExit(f"error: harvest verify refuses {cache}\n{status.stdout}{status.stderr}")
    return done._replace(answers=rows)


def median(url: str, rows: int) -> Run:
    """The middle one by peak memory of several runs."""
    runs = [harvest(url, rows) for _ in range(MEMORY_REPEATS)]
    return sorted(runs, key=lambda one: one.peak_mib)[MEMORY_REPEATS // 2]


def client(name: str, python: str, script: str, url: str, rows: int) -> Run:
    """A Python client on the same rows; its caches go into a fresh folder."""
    data = write_rows(rows) / "train.jsonl"
    answers = WORK / f"{name}_{rows}.jsonl"
    fresh = WORK / f"{name}_cache"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    environment = {
        "CURATOR_CACHE_DIR": str(fresh),
        "HF_HOME": str(fresh / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TELEMETRY_ENABLED": "0",
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    command = [python, str(STEPS / script), url, str(data), str(answers), str(CONCURRENCY)]
    done = run(name, url, rows, command, environment)
    with answers.open() as file:
        return done._replace(answers=sum(1 for line in file if line.strip()))


def version(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def print_rates(runs: list[Run]) -> None:
    base = next((one.rate() for one in runs if one.name == "harvest"), 0.0)
    print("| client | rows | requests/s | harvest is | s, whole run | CPU s | peak MiB | answers |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for one in runs:
        factor = f"{base / one.rate():.1f} times" if base and one.rate() else "-"
        print(
            f"| {one.name} | {one.rows:,} | {one.rate():,.0f} | {factor} | {one.whole_seconds:.1f} "
            f"| {one.cpu_seconds:.1f} | {one.peak_mib:.0f} | {one.answers:,} |"
        )


def print_memory(runs: list[Run]) -> bool:
    smallest = runs[0]
    print(f"Medians of {MEMORY_REPEATS} runs by peak memory.")
    print()
    print("| harvest, rows | requests/s | peak MiB | of the smallest |")
    print("|---:|---:|---:|---:|")
    for one in runs:
        print(f"| {one.rows:,} | {one.rate():,.0f} | {one.peak_mib:.1f} | {one.peak_mib / smallest.peak_mib:.3f} |")
    return all(one.peak_mib <= FLAT * smallest.peak_mib for one in runs)


def main() -> None:
    clients = sys.argv[1:] or ["harvest", "openai", "curator", "memory"]
    WORK.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen(SERVER, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        rates: list[Run] = []
        if "harvest" in clients:
            rates.append(harvest(url, ROWS))
        if "openai" in clients:
            python = os.environ["CLIENT_PYTHON"]
            rates.append(client(f"openai-{version(python, 'openai')}", python, "openai_client.py", url, ROWS))
        if "curator" in clients:
            python = os.environ["PEER_PYTHON"]
            name = f"curator-{version(python, 'bespokelabs-curator')}"
            rates.append(client(name, python, "curator_client.py", url, PEER_ROWS))
        print(f"{os.cpu_count()} cores; {CONCURRENCY} requests in flight; the server answers at once.\n")
        if rates:
            print_rates(rates)
        lost = [one.name for one in rates if one.answers != one.rows]
        flat = True
        if "memory" in clients:
            print()
            flat = print_memory([median(url, rows) for rows in MEMORY_ROWS])
        if lost:
            raise SystemExit(f"error: answers are missing: {', '.join(lost)}")
        if not flat:
            raise SystemExit(f"error: peak memory grows by more than {FLAT - 1:.0%}")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
