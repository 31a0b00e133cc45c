"""Pipelines that are refused, each with its reason, as `docs/families.md` has them.

`FLOWFACTORY_WRITE_DOCS=1` writes them there. What no test has tried is listed there too: a class that another version
of diffusers brings fails nothing, and is listed when the page is next written.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from families import loud
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.types import Row
from flowfactory.models import reading, tap
from flowfactory.models.pipeline import PipelineAdapter
from more_families import refused, small_sizes
from PIL import Image

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
HEAD, UNTRIED = "| refused | because |\n|---|---|\n", "Not tried: "
WRITES = bool(os.environ.get("FLOWFACTORY_WRITE_DOCS"))
BUILDERS = refused()
reasons: dict[str, str] = {}


@pytest.fixture(autouse=True)
def sizes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_sizes(patch)
        yield


@pytest.mark.parametrize("name", BUILDERS)
def test_it_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipe = BUILDERS[name].make()
    for network in tap.networks(pipe).values():
        loud(network)
    assert type(pipe).__name__ == name
    reasons[name] = next(iter(reading.reasons_against(pipe)), None) or refusal(pipe, tmp_path, BUILDERS[name].size)
    if not WRITES:
        assert without_lines(documented()[name]) == without_lines(reasons[name])


def test_what_signatures_show_is_refused_by_class() -> None:
    """So that it is said before any weight is read."""
    if not WRITES:
        shown = {name: by_class(name) for name in documented() if name not in BUILDERS}
        assert shown == {name: documented()[name] for name in shown}


def by_class(name: str) -> str | None:
    """The first reason against all pipelines of a class."""
    return next(iter(reading.reasons_against_class(getattr(diffusers, name))), None)


def without_lines(reason: str) -> str:
    """A reason whatever else its place in the code is moved by."""
    return re.sub(r"line \d+", "line …", reason)


def refusal(pipe: DiffusionPipeline, folder: Path, size: Size) -> str:
    """What is said of a run of twelve steps."""
    pipe.save_pretrained(folder)
    with pytest.raises(tap.Refused) as said:
        sigmas_of_a_run(PipelineAdapter(PipelineSpec(path=Location(str(folder)))), folder / "picture.png", size)
    assert str(said.value).startswith(f"{folder} ({type(pipe).__name__}) cannot be trained here: ")
    return str(said.value).partition(" cannot be trained here: ")[2].replace(str(folder), "it")


def sigmas_of_a_run(adapter: PipelineAdapter[PipelineSpec], picture: Path, size: Size) -> torch.Tensor:
    """With a condition image, where one is taken."""
    Image.linear_gradient("L").convert("RGB").resize((96, 64)).save(picture)
    adapter.load(torch.device("cpu"), torch.float32)
    adapter.encode([Row("a cat", images=(picture,) if "image" in tap.parameters(adapter.pipe) else ())])
    return adapter.sigmas(12, size)


def test_the_page_lists_what_was_not_tried() -> None:
    """Last, since it writes the page where it is asked to."""
    page = PAGE.read_text()
    if WRITES:
        before, _, rest = page.partition(HEAD)
        others = [name for name in candidates() if name not in served(page)]
        reasons.update({name: why for name in others if (why := by_class(name))})
        rows = "".join(f"| `{name}` | {reasons[name]} |\n" for name in sorted(reasons))
        after = rest.partition(UNTRIED)[2].partition("\n\n")[2]
        names = ", ".join(f"`{name}`" for name in others if name not in reasons)
        page = f"{before}{HEAD}{rows}\n{UNTRIED}{names or 'none'}.\n\n{after}"
        PAGE.write_text(page)
    untried = page.partition(UNTRIED)[2].partition("\n\n")[0]
    assert not [name for name in served(page) | set(documented()) if f"`{name}`" in untried]
    assert set(documented()) >= set(BUILDERS)


def served(page: str) -> set[str]:
    """Classes in the table of families."""
    return set(re.findall(r"\| `(\w+Pipeline)` \|", page.partition(HEAD)[0]))


def documented() -> dict[str, str]:
    """The reasons on the page, by class."""
    rows = PAGE.read_text().partition(HEAD)[2].partition("\n\n")[0].splitlines()
    return {name.strip(" `"): why.strip() for _, name, why, _ in (row.split("|") for row in rows)}


def candidates() -> list[str]:
    """Classes of the installed diffusers that make or edit images or videos with a transformer, from a prompt."""
    found = []
    for name in sorted(dir(diffusers)):
        if name.endswith("Pipeline") and name != "DiffusionPipeline":
            kind: Any = getattr(diffusers, name)
            made, called = (inspect.signature(inspect.unwrap(f)).parameters for f in (kind.__init__, kind.__call__))
            if "transformer" in made and "prompt" in called and "scheduler" in made:
                found.append(name)
    return found
