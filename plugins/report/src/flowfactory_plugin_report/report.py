"""`flowfactory report`: the page as a file that needs nothing but itself, and its curves as figures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowfactory import read_runs, see_writable, shown, write_whole

from flowfactory_plugin_report.curves import sections
from flowfactory_plugin_report.gallery import galleries
from flowfactory_plugin_report.page import PAGE, page
from flowfactory_plugin_report.plots import draw, see
from flowfactory_plugin_report.writing import Refused, writing

HEAD = 4096
"""Bytes of a page in which its title is."""

__all__ = ["PAGE", "report"]


def report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page about the runs in `folders` to `out`, and its curves to `<name of out>-curves/` beside it.

    Raises:
        RunError: a folder is not that of a run, a file in it cannot be read, the page cannot be written, or something
            else lies in its place.
    """
    curves = out.with_name(f"{out.stem}-curves")
    _refuse_what_is_not_ours(out)
    see(curves)
    runs = read_runs(folders)
    drawn = sections(runs)
    content = page(runs, drawn, galleries(runs), out.parent).encode()
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, content)
    draw(drawn, curves)
    return out


def _refuse_what_is_not_ours(out: Path) -> None:
    with writing(out):
        if out.is_dir():
            raise Refused(f"{shown(out)} is a folder; --out names the page in it, such as {shown(out / PAGE)}")
        see_writable(out)
        if not out.exists() or (out.is_symlink() and out.is_file()):
            return  # a link gives way, what it leads to stays
        if not out.is_file():
            raise Refused(f"{shown(out)} is not a file that a page could replace; name another --out")
        with out.open("rb") as file:
            head = file.read(HEAD)
    if not (head.startswith(b"<!doctype html>") and b"<title>Report: " in head):
        raise Refused(f"{shown(out)} is no report, and is not written over; name another --out")
