"""What people are to read reaches them, whatever becomes of descriptors and streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import os, sys
from pathlib import Path
from flowfactory.calling import calling
from flowfactory.streams import prints_to_stderr, speaking

with speaking() as (out, err):
    {body}
print("later")
"""


def run(body: str, folder: Path, shell: str = "") -> tuple[str, str]:
    """What a program that speaks says on stdout and stderr."""
    code = BEGIN.format(body=body.replace("\n", "\n    "))
    command = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, timeout=60)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("meddling", "told"),
    [
        ("os.close(1); os.close(2)", ["descriptor 1", "descriptor 2"]),
        ("os.fdopen(2, 'w').close()", ["descriptor 2"]),
        ("os.dup2(os.open(os.devnull, os.O_WRONLY), 2)", ["descriptor 2"]),
        ("os.close(0)", ["descriptor 0"]),
        ("sys.stdout.close(); sys.stderr.close()", ["sys.stdout", "sys.stderr"]),
        ("[os.close(n) for n in (0, 1, 2)]; sys.stderr.close()", ["descriptor 0", "descriptor 1", "descriptor 2"]),
    ],
)
def test_what_is_closed_or_redirected_is_put_back_and_words_arrive_meanwhile(
    tmp_path: Path, meddling: str, told: list[str]
) -> None:
    body = f"""
with calling("reward 'r'"):
    {meddling}
    print("data", file=out, flush=True)
    print("words", file=err)
os.write(1, b"one\\n")
os.write(2, b"two\\n")
print("after", file=sys.stderr)"""
    out, err = run(body, tmp_path)
    assert out == "data\none\nlater\n"
    lines = err.splitlines()
    assert [line for line in lines if "changed" not in line] == ["words", "two", "after"]
    assert {f"reward 'r' changed {what}, which everybody shares; it is as it was again" for what in told} <= set(lines)


def test_a_file_that_has_got_the_number_keeps_it(tmp_path: Path) -> None:
    body = """
os.close(2)
file = open("checkpoint", "wb", buffering=0)
assert file.fileno() == 2
with calling("reward 'r'"):
    pass
file.write(b"weights")
file.close()
with calling("reward 'r'"):
    pass
os.write(2, b"two\\n")"""
    assert run(body, tmp_path)[1].splitlines()[-1] == "two"
    assert (tmp_path / "checkpoint").read_bytes() == b"weights"


def test_what_is_printed_goes_to_stderr_and_data_to_stdout(tmp_path: Path) -> None:
    body = """
with prints_to_stderr():
    print("a library")
    os.system("echo a program")
    with calling("reward 'r'"):
        os.close(1)
    os.system("echo another")
    print("data", file=out, flush=True)
print("end")"""
    out, err = run(body, tmp_path)
    assert out == "data\nend\nlater\n"
    assert [line for line in err.splitlines() if "changed" not in line] == ["a library", "a program", "another"]


def test_numbers_that_were_closed_at_the_start_are_given_to_no_file(tmp_path: Path) -> None:
    body = """
with open("file", "w") as file:
    assert file.fileno() > 2
    print("nobody", file=out)
with prints_to_stderr():
    print("words", file=err)"""
    assert run(body, tmp_path, ">&- <&-") == ("", "words\n")


def test_a_reader_who_has_left_ends_nothing(tmp_path: Path) -> None:
    body = """
read, write = os.pipe()
os.dup2(write, 2)
with speaking() as (_, gone):
    os.close(read)
    os.close(write)
    for _ in range(3):
        print("words", file=gone)
Path("done").touch()"""
    run(body, tmp_path)
    assert (tmp_path / "done").is_file()
