"""What counts as quoted, and how readings are scored."""

import pytest
from flowfactory_plugin_ocr.text import edit_distance, normalised, quoted, similarity


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "FLOW 2026"', "FLOW 2026"),
        ("a sign that says 'FLOW 2026'", "FLOW 2026"),
        ("a sign that says “FLOW 2026” at dusk", "FLOW 2026"),
        ("a sign that says ‘FLOW 2026’", "FLOW 2026"),
        ("ein Schild mit „Guten Tag“", "Guten Tag"),
        ("une affiche « Bonjour » rouge", " Bonjour "),
        ('two doors, "IN" and "OUT"', "IN OUT"),
        ("a cat's bed and a dog's bowl", None),
        ("the dogs' bowls and the cats' beds", None),
        ("a cat's bed that says 'it's mine'", "it's mine"),
        ('a mug with "don\'t panic" on it', "don't panic"),
        ("nothing to read", None),
        ('an empty ""', None),
        ('a blank "  "', None),
        ('an open "quote', None),
    ],
)
def test_the_quoted_text(prompt: str, text: str | None) -> None:
    assert quoted(prompt) == text


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flow", "flow", 0), ("ab", "ba", 2)],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_case_and_spaces_do_not_count() -> None:
    assert normalised(" Flow\n2026\t") == "flow2026"
    assert normalised("ＦＬＯＷ") == "flow"
    assert similarity("FLOW 2026", "flow20 26") == 1.0


def test_scores_follow_the_distance_and_never_leave_the_unit_interval() -> None:
    assert similarity("FLOW", "FLAW") == 0.75
    assert similarity("FLOW", "FL") == 0.5
    assert similarity("FLOW", "") == 0.0
    assert similarity("FLOW", "a very long text about something else") == 0.0


def test_text_within_a_longer_reading_is_read() -> None:
    assert similarity("FLOW", "the FLOW 2026 meeting") == 1.0


def test_looking_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no text"):
        similarity("  ", "words")
