"""Win rates against Pref-GRPO's numbers."""

import pytest
from flowfactory_plugin_preference.win_rate import Comparison, outcome, pairs, win_rates
from support import Case, each


@each("pairwise_win_rate")
def test_win_rates_equal_pref_grpos(case: Case) -> None:
    words = {"first": "first", "second": "second", "tie_or_unparsable": "unclear"}
    comparisons = [Comparison(c["i"], c["j"], words[c["outcome"]]) for c in case["inputs"]["comparisons"]]
    found = win_rates(case["inputs"]["num_items"], comparisons)
    assert found == pytest.approx(case["outputs"]["win_rate"].tolist(), abs=1e-6)


def test_a_member_never_compared_gets_0() -> None:
    assert win_rates(3, [Comparison(0, 1, "tie")]) == [0.5, 0.5, 0.0]


def test_every_two_members_meet_in_both_orders() -> None:
    assert sorted(pairs(3)) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_a_judge_that_only_sees_positions_prefers_nobody() -> None:
    for biased in ("first", "second"):
        assert win_rates(4, [Comparison(i, j, biased) for i, j in pairs(4)]) == [0.5] * 4


@pytest.mark.parametrize(
    ("reply", "meaning"),
    [
        ("first", "first"),
        ("The left one is sharper.\n\nSecond.", "second"),
        ("hmm\n**tie**\n", "tie"),
        ("Answer: `first`", "first"),
        ("the first image is better than the second", "unclear"),
        ("first or second", "unclear"),
        ("first\nI am sure", "unclear"),
        ("", "unclear"),
    ],
)
def test_only_a_last_line_that_names_the_winner_is_clear(reply: str, meaning: str) -> None:
    assert outcome(reply) == meaning
