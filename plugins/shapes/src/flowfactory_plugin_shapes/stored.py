"""Write what algorithms that learn from the data want: pictures that match their prompts, and pairs of right and wrong.

    python -m flowfactory_plugin_shapes.stored DIR

`demonstrations.jsonl` has some pictures of every training prompt. `preferences.jsonl` prefers each of them to one of
another training prompt, whose words are as nearly the same as can be, and which is not right here as well.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowfactory_plugin_shapes.scoring import grade
from flowfactory_plugin_shapes.world import parse, prompts, render


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--each", default=3, show_default=True, help="Pictures of each prompt.")
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, each: int, seed: int) -> None:
    """Write both tables and their pictures."""
    write(folder, each, seed)


def write(folder: Path, each: int = 3, seed: int = 0) -> None:
    """Write both tables, and `pictures/`, into a folder; the same ones every time."""
    rng, texts = np.random.default_rng(seed), prompts("train")
    shown = [{text: render(parse(text), rng) for text in texts} for _ in range(each)]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    right, pairs = [], []
    for number, text in enumerate(texts):
        for i, pictures in enumerate(shown):
            name, other = f"pictures/{number:03d}-{i}.png", texts.index(_near(text, pictures, rng))
            Image.fromarray((pictures[text] * 255).round().astype(np.uint8)).save(folder / name, optimize=True)
            right.append({"prompt": text, "media": name})
            pairs.append({"prompt": text, "chosen": name, "rejected": f"pictures/{other:03d}-{i}.png"})
    for file, rows in (("demonstrations.jsonl", right), ("preferences.jsonl", pairs)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _near(text: str, pictures: Mapping[str, NDArray[np.float32]], rng: np.random.Generator) -> str:
    """The prompt that shares most words with another, and whose picture is wrong for that one; of equals any."""
    others = [str(other) for other in rng.permutation(list(pictures))]
    nearest = sorted(others, key=lambda other: len({*text.split()} ^ {*other.split()}))
    return next(other for other in nearest if not grade(text, pictures[other]).correct)


if __name__ == "__main__":
    main()
