"""Write the data sets that `run` asks about: questions, questions about pictures, and rows that no server can take.

usage: make_data.py WORK

    WORK/questions   24 texts
    WORK/pictures    12 texts, each with a PNG of one coloured rectangle, 32 x 32
    WORK/paragraphs  24 texts of some 110 tokens
    WORK/hopeless    3 texts, of which one is over the context of every server
    WORK/binding     3 texts, of which one is over the physical batch of the embeddings server
"""

import json
import pathlib
import sys

from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
PLACES = {"left": (2, 8, 14, 24), "right": (18, 8, 30, 24), "above": (8, 2, 24, 14), "below": (8, 18, 24, 30)}
# Fields of a task must reach its template, so the picture's path stands in one; the teacher's prompt leaves it out.
TASK = """name = "{name}"
fields = [{fields}]
label = "label"
classes = ["no", "yes"]
metric = "accuracy"

[template]
first = "{{question}}"
"""


def write(folder: pathlib.Path, rows: list[dict[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fields = ", ".join(f'"{name}"' for name in rows[0])
    second = 'second = "{image}"\n' if "image" in rows[0] else ""
    (folder / "task.toml").write_text(TASK.format(name=folder.name, fields=fields) + second)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(path: pathlib.Path, colour: str, place: str) -> None:
    picture = Image.new("RGB", (32, 32), (255, 255, 255))
    picture.paste(COLOURS[colour], PLACES[place])
    picture.save(path)


def main() -> None:
    work = pathlib.Path(sys.argv[1])
    things = [(colour, place) for colour in COLOURS for place in PLACES]
    questions = [
        f"Is the {colour} {shape} {place} of the others?" for colour, place in things for shape in ("circle", "cross")
    ]
    write(work / "questions", [{"question": question} for question in questions])
    write(work / "paragraphs", [{"question": " ".join([question] * 9)} for question in questions])

    pictures = work / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for colour, place in things:
        draw(pictures / f"{colour}_{place}.png", colour, place)
    write(
        pictures,
        [{"question": "What is in the picture?", "image": f"{colour}_{place}.png"} for colour, place in things],
    )
    write(work / "hopeless", [{"question": text} for text in (questions[0], "word " * 6000, questions[1])])
    write(work / "binding", [{"question": text} for text in (questions[0], "word " * 700, questions[1])])


if __name__ == "__main__":
    main()
