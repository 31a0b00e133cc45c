"""What a prompt asks to be written, and how close a reading comes to it.

    r = 1 - min(d, n) / n,   d = 0 where the text is part of the reading, else its edit distance to it

with `n` the text's length, both without spaces and case: the text reward of Flow-GRPO (Liu et al. 2025,
arXiv:2505.05470, section 5.1).
"""

from __future__ import annotations

import re
import unicodedata

_QUOTED = re.compile(
    r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|(?<!\w)‘(.+?)’(?!\w)|(?<!\w)'(.+?)'(?!\w)", re.DOTALL
)


def quoted(prompt: str) -> str | None:
    """The quoted parts of a prompt, in order and joined by spaces, or `None` if there are none.

    Straight, typographic, German and French quotation marks count; an apostrophe within a word does not.
    """
    parts = [next(part for part in found.groups() if part is not None) for found in _QUOTED.finditer(prompt)]
    return " ".join(parts) if any(normalised(part) for part in parts) else None


def normalised(text: str) -> str:
    """`text` without white space and case, in Unicode's compatibility form."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def similarity(wanted: str, read: str) -> float:
    """The score in [0, 1] of reading `read` where `wanted` was asked for.

    Raises:
        ValueError: nothing was asked for.
    """
    wanted, read = normalised(wanted), normalised(read)
    if not wanted:
        raise ValueError("there is no text to look for")
    distance = 0 if wanted in read else edit_distance(wanted, read)
    return 1 - min(distance, len(wanted)) / len(wanted)


def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of a character that make `a` into `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
