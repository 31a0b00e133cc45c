"""The reference pages are what the source declares. What stands in fenced blocks is tested in `test_snippets.py`."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import api
import flowfactory
import hook_pages
import pytest
import reference
import tuning
import versions
from browser import browser, needs_chromium, prefer, serious, until
from flowfactory.cli.describe import describe
from flowfactory.cli.main import cli
from flowfactory.cli.verbs.examples import installed
from flowfactory.components.resolved import contributions
from flowfactory.contracts import hooks
from flowfactory.data.locations import locate
from flowfactory.discovery.entries import KINDS
from flowfactory.discovery.registry import Registry
from flowfactory.spec.kinds import keys
from flowfactory.spec.structure import TABLES, load_spec
from flowfactory.spec.tables import RewardEntry
from selenium.webdriver.common.by import By

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "guide.md").read_text(encoding="utf-8")


def snippets(language: str, text: str = GUIDE) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


REFERENCE = reference.pages()


@pytest.mark.parametrize("name", REFERENCE)
def test_pages_are_up_to_date(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == REFERENCE[name], "run: python docs/tools/reference.py"


def test_every_key_is_in_the_page() -> None:
    page = (DOCS / "spec.md").read_text(encoding="utf-8")
    for name, cls in TABLES.items():
        section = page.partition(f"## `[{name}]`")[2].partition("\n## ")[0]
        for row in describe(cls):
            assert f"| `{row.name}` |" in section, f"[{name}] {row.name}"
            assert row.doc, f"[{name}] {row.name}"
    for name in set(keys(RewardEntry)) - {"spec"}:
        assert f"| `{name}` |" in page


def test_every_hook_and_group_is_in_the_page() -> None:
    page = (DOCS / "hooks.md").read_text(encoding="utf-8")
    for name in hook_pages.hook_functions():
        assert f"### `{name}`" in page
        assert (vars(hooks)[name].__doc__ or "").splitlines()[0] in page
    assert all(kind.group in page for kind in KINDS.values())


def test_every_command_and_option_is_in_the_page() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    for path, command in reference.commands(cli, "flowfactory"):
        section = page.partition(f"## `{path}`")[2].partition("\n## ")[0]
        for parameter in command.params:
            option = next((text for text in parameter.opts if text.startswith("--")), None)
            assert option is None or option in section, f"{path} {option}"


def test_reference_imports_no_torch() -> None:
    code = "import sys, reference; reference.pages(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DOCS / "tools")


def test_the_hook_pages_plugin_works(tmp_path: Path) -> None:
    (code,) = snippets("python", hook_pages.HOOKS_INTRODUCTION)
    (tmp_path / "mine.py").write_text(code)
    registry = Registry()
    registry.load_file(tmp_path / "mine.py")
    assert registry.find("rewards", "mine").provides.summary == "What it rewards, in one line."


def golden() -> dict[str, list[str]]:
    """The golden messages by kind."""
    found: dict[str, list[str]] = {}
    text = (Path(__file__).parent / "messages.txt").read_text(encoding="utf-8")
    for kind, message in re.findall(r"^== (\S+) ==\n(.*?)(?=\n\n== |\Z)", text, re.MULTILINE | re.DOTALL):
        found.setdefault(kind, []).append(message.strip("\n"))
    return found


@pytest.mark.parametrize("kind", golden())
def test_every_kind_of_message_is_explained(kind: str) -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    section = page.partition(f"### `{kind}`\n")[2].partition("\n##")[0]
    example, explanation = re.fullmatch(r"\n```text\n(.*?)\n```\n\n(.+)", section, re.DOTALL).groups()  # type: ignore[union-attr]
    assert example in golden()[kind]
    assert len(explanation) > 20


def test_no_explanation_is_left_over() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `(.+)`$", page, re.MULTILINE)) == golden().keys()


def test_every_page_is_in_the_navigation() -> None:
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"([a-z0-9/-]+\.md)$", text, re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


MOST_WORDS = 45
"""In a sentence: who reads English as a second language loses longer ones."""


@pytest.mark.parametrize("page", sorted({*DOCS.glob("*.md"), DOCS.parent / "README.md"}), ids=lambda page: page.stem)
def test_sentences_are_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if text.startswith("<!-- Written by") or page.stem == "papers":
        return  # of docstrings; formulas
    prose = re.sub(r"^```.*?^```$|<!--.*?-->|^\|.*?$", "", text, flags=re.MULTILINE | re.DOTALL)
    paragraphs = re.split(r"\n\s*\n|\n(?=- |#|\d+\. )", re.sub(r"\]\([^)]*\)", "]", prose))
    sentences = [
        words for one in paragraphs for words in re.split(r"(?<=[.?!:])\s+(?=[A-Z*`\[])", " ".join(one.split()))
    ]
    assert [words for words in sentences if len(words.split()) > MOST_WORDS] == []


@pytest.mark.parametrize(
    "page", [*DOCS.rglob("*.md"), *DOCS.parent.glob("plugins/*/README.md")], ids=lambda page: "/".join(page.parts[-2:])
)
def test_tables_and_blocks_keep_their_lines(page: Path) -> None:
    """Wrapped as prose, a table or a block of code is shown as a line of signs."""
    assert re.findall(r"^.*\S.*```.*$|^.*\|\|?---.*\|[ \w].*$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


def test_the_readme_names_every_plugin() -> None:
    table = (
        (DOCS.parent / "README.md").read_text(encoding="utf-8").partition("## What is in it")[2].partition("\n- ")[0]
    )
    offered = [offer.provides.name for offers in contributions(Registry())[0].values() for offer in offers]
    assert len(offered) > 50
    assert [name for name in offered if f"`{name}`" not in table] == []


def words(page: str) -> list[str]:
    """The words that a page's table explains."""
    return re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_glossary_has_every_concept_by_alphabet() -> None:
    assert len(words("concepts.md")) > 10
    assert set(words("concepts.md")) <= set(words("glossary.md"))
    assert words("glossary.md") == sorted(set(words("glossary.md")), key=str.lower)


def test_the_curves_of_tuning_are_those_that_the_page_shows() -> None:
    shown = re.findall(r"\(images/([\w-]+)\.svg\)", (DOCS / "tuning.md").read_text(encoding="utf-8"))
    assert shown == [*tuning.FIGURES]
    assert {run for figure in tuning.FIGURES.values() for run in figure.lines} == {*tuning.CHANGES}
    for changes in tuning.CHANGES.values():
        example = locate(tuning.SPEC, Path(), exists=True)
        assert load_spec(Path(example), Registry(), [*tuning.SHORT, *changes]).run.epochs == 16
    for name, figure in tuning.FIGURES.items():
        text = (DOCS / "images" / f"{name}.svg").read_text(encoding="utf-8")
        assert all(words in text for words in (*figure.lines.values(), *figure.panels.values()))


@pytest.mark.slow
def test_gpus_are_what_plan_estimates() -> None:
    import gpus  # which imports torch

    made = "\n".join(gpus.lines()) + "\n"
    assert made == (DOCS / "gpus.md").read_text(encoding="utf-8"), "run: python docs/tools/gpus.py docs/gpus.md"
    assert "| `flux-dev-grpo` | 31.4 | 28.4 | 30.0 | 30.2 | 48 GiB |" in made  # as in performance.md
    for example in installed():
        assert gpus.noted(example) == example.file.read_text(encoding="utf-8"), example.file


def test_the_site_opens_with_its_latest_version(tmp_path: Path) -> None:
    for name in ("0.9", "0.10", "assets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text("")
    versions.listed(tmp_path)
    entries = json.loads((tmp_path / "versions.json").read_text())
    assert [(entry["version"], entry["aliases"]) for entry in entries] == [("0.10", ["latest"]), ("0.9", [])]
    assert 'url=0.10/index.html"' in (tmp_path / "index.html").read_text()
    with pytest.raises(SystemExit, match=r"1\.2\.3 is no version of the site; say e\.g\. 0\.1"):
        versions.add("1.2.3", tmp_path)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_every_heading_says_something(page: Path) -> None:
    assert re.findall(r"^#+\s*$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


PLACES = ("*.md", "core/*.md", "docs/**/*.md", "downstream/*.md", "plugins/*/*.md")
PAGES = sorted(page for place in PLACES for page in DOCS.parent.glob(place))
PATHS = re.compile(r"\b(?:core|docs|downstream|plugins|templates|tests)/(?:[\w-]+/)*[\w-]+\.(?:py|toml|md|txt|svg)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = set(PATHS.findall(re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))))
    assert sorted(path for path in named if not (DOCS.parent / path).is_file()) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=DOCS.parent, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_has_every_page_and_fetches_nothing(site: Path) -> None:
    pages = {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")}
    assert pages >= {page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md")}
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"""<(?:script|img|iframe)[^>]*\ssrc="?(?:https?:)?//""", text), page.name
        assert not re.search(r"""href="https?://[^"]*\.(?:js|css|woff2?)""", text), page.name


def test_the_menu_leads_where_it_says(site: Path) -> None:
    """A page that is called index.md becomes its section's, and vanishes from the menu under its own name."""
    links = re.findall(
        r'href="([^"]+)" class="md-nav__link[^>]*>\s*<span[^>]*>\s*(.*?)\s*<', (site / "start.html").read_text()
    )
    assert [name for page, name in links if page == "results/index.html"] == ["Results"]
    assert "Reference" not in [name for _, name in links]


def test_every_public_name_has_its_place_in_the_site(site: Path) -> None:
    """With the words of its docstring."""
    assert sorted(name for group in api.groups() for name in group.names) == flowfactory.__all__
    for group in api.groups():
        page = (site / group.page).with_suffix(".html").read_text(encoding="utf-8")
        places = page.split('id="flowfactory.')
        for name in group.names:
            (own,) = (place for place in places if place.startswith(f'{name}"'))
            value = flowfactory.__getattr__(name)
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith("flowfactory"):
                assert letters((value.__doc__ or "").splitlines()[0]) in letters(own), name


@needs_chromium
def test_axe_finds_nothing_serious_in_the_site(site: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as driver:
        for page in ("index.html", "tuning.html", "plugin/grpo.html"):
            for scheme in ("light", "dark"):
                prefer(driver, scheme)
                driver.get((site / page).as_uri())
                assert serious(driver) == [], (page, scheme)


@needs_chromium
def test_the_search_finds_words_without_a_server(site: Path, tmp_path: Path) -> None:
    """Of a page that was opened from disk; signs around a word are no part of it."""
    with browser(tmp_path) as driver:
        for word, page in (("jsonl", "data.html"), ("first_block_cache", "performance.html")):
            driver.get((site / "plugin/grpo.html").as_uri())
            field = driver.find_element(By.CSS_SELECTOR, ".md-search__input")
            field.click()
            field.send_keys(word)
            until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link"))
            links = driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
            found = {Path(urlsplit(str(link.get_attribute("href"))).path) for link in links}
            assert site / page in found, word


def letters(text: str) -> str:
    """A text without tags, entities and signs."""
    return re.sub(r"<[^>]*>|&\w+;|\W", "", text)
