"""Opens a cache with a card as its readers do. See `check_card`."""

import hashlib
import json
import logging
import pathlib
import sys
import tempfile

MODULES = ["mlcroissant", "datasets", "polars", "duckdb", "pillow"]
try:
    import datasets
    import duckdb
    import huggingface_hub
    import mlcroissant
    import PIL.Image  # noqa: F401: mlcroissant and datasets decode pictures with it
    import polars
except ImportError as error:
    sys.exit(f"error: {error}\nhint: {sys.executable} -m pip install {' '.join(MODULES)}")


def check_croissant(folder: pathlib.Path) -> int:
    path = folder / "croissant.json"
    logging.getLogger().setLevel(logging.ERROR)  # Properties that are only recommended are listed below.
    dataset = mlcroissant.Dataset(jsonld=path)
    for warning in sorted(dataset.metadata.ctx.issues.warnings):
        print(f"mlcroissant  {warning}")
    listed = [file for file in json.loads(path.read_text())["distribution"] if "sha256" in file]
    for file in listed:
        found = hashlib.sha256((folder / file["contentUrl"]).read_bytes()).hexdigest()
        assert found == file["sha256"], file["@id"]
    num_rows = sum(1 for _ in dataset.records("rows"))
    print(f"mlcroissant  {len(listed)} shards, {num_rows} rows")
    return num_rows


def check_datasets(folder: pathlib.Path) -> int:
    card = huggingface_hub.DatasetCard.load(folder / "README.md")
    assert card.data.license and card.data.task_categories, card.data
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        rows = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
        told = datasets.Features._from_yaml_list(card.data.dataset_info["features"])
        assert rows.features == told, (rows.features, told)
        print(f"datasets     {rows.num_rows} rows, {len(rows.features)} columns, licence {card.data.license}")
        return rows.num_rows


def check_frames(folder: pathlib.Path) -> list[int]:
    shards = str(folder / "[ps]*-*.parquet")  # as the card says for shards of slices, without the lists of failures
    num_polars = polars.read_parquet(shards).height
    (num_duckdb,) = duckdb.execute("select count(*) from read_parquet(?)", [shards]).fetchone()
    print(f"polars       {num_polars} rows")
    print(f"duckdb       {num_duckdb} rows")
    return [num_polars, num_duckdb]


def main() -> None:
    folder = pathlib.Path(sys.argv[1]).resolve()
    counts = [check_datasets(folder), *check_frames(folder), check_croissant(folder)]
    assert len(set(counts)) == 1, counts
    print("ok")


if len(sys.argv) != 2:
    sys.exit("usage: scripts/check_card FOLDER")
main()
