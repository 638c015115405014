"""Build a text classification data set (package description -> archive section) from Debian index files.

Reads lines `KIND PATH` on stdin, as `apt-get indextargets` prints them; KIND is Packages or Translations.

What goes in, in this order:
1. One record per package name (the first index that lists it), joined to its English description by Description-md5.
2. The 8 sections with most packages; a component prefix such as `contrib/` is dropped.
3. The text is the short and the long description on one line. The package's name is not given, so that the label
   cannot be looked up. Texts over --max-chars characters are left out: the teacher's context holds 512 tokens.
4. A text found in two sections is dropped; found twice in one section, it is kept once. Texts are compared by their
   lower-case letters and digits.
5. All packages of one source package share a split, since their descriptions repeat each other; of each source,
   one package per section is kept.
6. Every section gives the same number of rows to a split, so that chance is one in eight.

Every choice is made by the order of a keyed BLAKE2 hash: the same index and seed give the same bytes.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

NUM_SECTIONS = 8


class Package(NamedTuple):
    name: str
    source: str
    section: str
    description: str


def paragraphs(path: str) -> Iterator[dict[str, str]]:
    """The records of one index file, of whatever compression; continuation lines are joined by newlines."""
    raw = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], capture_output=True, check=True).stdout
    for block in raw.decode("utf-8").split("\n\n"):
        record: dict[str, str] = {}
        key = ""
        for line in block.splitlines():
            if line[0] in " \t":
                record[key] += "\n" + line[1:]
            else:
                key, _, value = line.partition(":")
                record[key] = value.strip()
        if record:
            yield record


def plain_text(description: str) -> str:
    """Debian's markup taken away: ` .` separates paragraphs, lines are wrapped, the first line is the short form."""
    short, _, long = description.partition("\n")
    lines = [line for line in long.splitlines() if line.strip() != "."]
    short = short.strip()
    if not short.endswith((".", "!", "?")):
        short += "."
    return " ".join([short, *" ".join(lines).split()])


def read_packages(targets: list[tuple[str, str]]) -> tuple[list[Package], int]:
    """All packages that have an English description, and how many have none."""
    descriptions = {
        record["Description-md5"]: record["Description-en"]
        for kind, path in targets
        if kind == "Translations"
        for record in paragraphs(path)
        if "Description-en" in record
    }
    packages: dict[str, Package] = {}
    without: set[str] = set()
    for kind, path in targets:
        if kind != "Packages":
            continue
        for record in paragraphs(path):
            name = record["Package"]
            description = descriptions.get(record.get("Description-md5", ""))
            if description is None or "Section" not in record:
                without.add(name)
            elif name not in packages:
                source = record.get("Source", name).split(" ")[0]
                section = record["Section"].rpartition("/")[2]
                packages[name] = Package(name, source, section, plain_text(description))
    return list(packages.values()), len(without - packages.keys())


def normalised(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


class Order:
    """A seeded order: `number(x)` is uniform on [0, 1) and depends on seed and x alone."""

    def __init__(self, seed: int) -> None:
        self.key = seed.to_bytes(8, "little")

    def number(self, purpose: str, value: str) -> float:
        digest = hashlib.blake2b(f"{purpose}\0{value}".encode(), key=self.key, digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64


def distinct(packages: list[Package], order: Order) -> list[Package]:
    """Drop texts found in two sections; keep one package per text, and one per source and section."""
    by_text: dict[str, list[Package]] = collections.defaultdict(list)
    for package in packages:
        by_text[normalised(package.description)].append(package)
    kept: dict[tuple[str, str], Package] = {}
    for same in by_text.values():
        if len({package.section for package in same}) > 1:
            continue
        package = min(same, key=lambda p: order.number("text", p.name))
        place = (package.source, package.section)
        if place not in kept or order.number("place", package.name) < order.number("place", kept[place].name):
            kept[place] = package
    return list(kept.values())


def split_of(source: str, quotas: dict[str, int], order: Order) -> str:
    """The split of a source package: shares of the hash range in proportion to the quotas."""
    number = order.number("split", source) * sum(quotas.values())
    for split, quota in quotas.items():
        number -= quota
        if number < 0:
            return split
    raise AssertionError("the number is below the sum of the quotas")


def sample(packages: list[Package], sections: list[str], quotas: dict[str, int], order: Order) -> dict[str, list[Package]]:
    """For every split, exactly its quota of packages from every section, in a seeded order."""
    found: dict[tuple[str, str], list[Package]] = collections.defaultdict(list)
    for package in packages:
        found[split_of(package.source, quotas, order), package.section].append(package)
    splits: dict[str, list[Package]] = {}
    for split, quota in quotas.items():
        rows: list[Package] = []
        for section in sections:
            candidates = sorted(found[split, section], key=lambda p: (order.number("row", p.name), p.name))
            if len(candidates) < quota:
                sys.exit(
                    f"error: section {section} has {len(candidates)} rows for {split}, {quota} are asked for\n"
                    f"hint: ask for fewer rows with --{split}"
                )
            rows += candidates[:quota]
        splits[split] = sorted(rows, key=lambda p: (order.number("shuffle", p.name), p.name))
    return splits


def task_toml(sections: list[str]) -> str:
    classes = ", ".join(f'"{section}"' for section in sections)
    return (
        'name = "debian-sections"\n'
        'fields = ["description"]\n'
        'label = "section"\n'
        f"classes = [{classes}]\n"
        'metric = "accuracy"\n'
        "\n"
        "[template]\n"
        'first = "{description}"\n'
    )


def jsonl(rows: list[Package]) -> str:
    return "".join(
        json.dumps({"description": row.description, "section": row.section}, ensure_ascii=False) + "\n" for row in rows
    )


def digest_line(name: str, text: str) -> str:
    """As sha256sum prints it."""
    return f"{hashlib.sha256(text.encode()).hexdigest()}  {name}"


def index_digests(targets: list[tuple[str, str]]) -> str:
    """Which index files the data came from, so that another run can tell whether it read the same."""
    return "".join(f"{hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()}  {path}\n" for _, path in targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=440, help="training rows per section")
    parser.add_argument("--validation", type=int, default=64, help="validation rows per section")
    parser.add_argument("--test", type=int, default=125, help="test rows per section")
    parser.add_argument("--max-chars", type=int, default=1200, help="longest text kept, in characters")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    targets = [(kind, path) for kind, path in (line.split(maxsplit=1) for line in sys.stdin.read().splitlines())]
    order = Order(arguments.seed)
    packages, num_without = read_packages(targets)
    in_section = collections.Counter(package.section for package in packages)
    sections = sorted(section for section, _ in in_section.most_common(NUM_SECTIONS))
    largest = [package for package in packages if package.section in sections]
    short = [package for package in largest if len(package.description) <= arguments.max_chars]
    kept = distinct(short, order)
    quotas = {"train": arguments.train, "validation": arguments.validation, "test": arguments.test}
    splits = sample(kept, sections, quotas, order)

    files = {f"{split}.jsonl": jsonl(rows) for split, rows in splits.items()} | {"task.toml": task_toml(sections)}

    kept_in = collections.Counter(package.section for package in kept)
    lines = [
        f"packages in the index               {len(packages) + num_without:>7,}",
        f"  without an English description    {num_without:>7,}",
        f"  in the {NUM_SECTIONS} largest sections         {len(largest):>7,}",
        f"  of at most {arguments.max_chars:,} characters     {len(short):>7,}",
        f"  after removing repeated texts     {len(kept):>7,}",
        "",
        f"{'section':<12}{'in index':>10}{'distinct':>10}" + "".join(f"{split:>12}" for split in splits),
    ]
    for section in sections:
        counts = "".join(f"{sum(row.section == section for row in rows):>12,}" for rows in splits.values())
        lines.append(f"{section:<12}{in_section[section]:>10,}{kept_in[section]:>10,}{counts}")
    totals = "".join(f"{len(rows):>12,}" for rows in splits.values())
    lines += [f"{'total':<12}{len(largest):>10,}{len(kept):>10,}{totals}", ""]
    table = "\n".join([*lines, *(digest_line(name, text) for name, text in files.items())]) + "\n"
    files = {"counts.txt": table, "index_files.txt": index_digests(targets)} | files
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():  # the task comes last: its presence says that all is there
        (arguments.out / name).write_text(text, encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
