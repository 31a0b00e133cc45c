"""Noise levels to train at, and the decay of old policies."""

from __future__ import annotations

import attrs
import pytest
import torch
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Decay, Times
from flowfactory.losses.times import continuous, noise_levels, noised, shifted, step_strata, strata
from flowfactory.spec.window import LEVELS, LEVELS_OF_STEPS, decay_problems
from hypothesis import given, settings
from hypothesis import strategies as st
from support import GRID, Case, close, each
from torch import Tensor


def level_problems(times: Times, steps: int) -> list[tuple[str, str]]:
    """All that is wrong with noise levels."""
    ever = [fault for check in LEVELS for fault in check(times)]
    return ever + [fault for check in LEVELS_OF_STEPS for fault in check(times, steps)]


UNIFORM = Times(rule="uniform", range=(0.0, 1.0))
SAMPLES = 4000


def levels(times: Times, samples: int = SAMPLES, schedule: Tensor = GRID) -> Tensor:
    """Noise levels `(count, samples)` of independent samples."""
    return noise_levels(times, schedule, Draws([("times", i) for i in range(samples)]))


# --- goldens -------------------------------------------------------------------------------------------------------


@each("time_sampling", lambda case: case["inputs"]["kind"] == "uniform")
def test_uniform_equals_flow_factory(case: Case) -> None:
    """It draws the fraction of denoising done, we the noise level: the same strata from the other end."""
    given, expected = case["inputs"], case["outputs"]["timesteps"][:, 0] / 1000
    low, high = given["timestep_range"]
    times = Times(rule="uniform", range=(1 - high, 1 - low))
    ours = continuous(times, strata(1 - given["u"].double().flip(0)[None]))[0]
    close(ours.sort().values, expected.sort().values, 1e-6)


@each("sft_loss", lambda case: case["name"].startswith("time_"))
def test_levels_of_the_table_equal_diffusers(case: Case) -> None:
    """Its scripts draw how much is denoised and look that up in a falling table; we draw the noise level, and round."""
    given, expected, raw = case["inputs"], case["outputs"], case["inputs"]["raw"].double()
    own = {"shift": given["shift"], "table": 1000}
    times, quantiles = {
        "none": (Times(rule="uniform", range=(0.0, 1.0), **own), 1 - raw),
        "logit_normal": (
            Times(
                rule="logit-normal", mean=-given["logit_mean"], std=given["logit_std"], range=(0.0, 1.0), **own
            ),
            torch.special.ndtr(-raw),
        ),
        "mode": (Times(rule="mode", peak=given["mode_scale"], **own), raw),
    }[given["weighting"]]  # fmt: skip
    sigma = continuous(times, quantiles)
    close(sigma, expected["sigma"], 1e-7, 1e-6)
    even = sigma / (given["shift"] - (given["shift"] - 1) * sigma)
    assert torch.equal((1000 * (1 - even)).round().long(), expected["index"])


@pytest.mark.parametrize("rule", ["uniform", "logit-normal", "mode"])
def test_a_table_has_its_levels_only_and_never_0(rule: str) -> None:
    times = Times(rule=rule, count=1, table=4, range=None if rule == "mode" else (0.0, 1.0))  # type: ignore[arg-type]
    assert set(levels(times)[0].tolist()) == {0.25, 0.5, 0.75, 1.0}
    assert continuous(times, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [0.25, 1.0]


def test_mode_sampling_prefers_the_middle_and_is_uniform_without_a_peak() -> None:
    middle = {peak: float(((levels(Times(rule="mode", count=1, peak=peak)) - 0.5).abs() < 0.25).float().mean())
              for peak in (-1.0, 0.0, 1.29)}  # fmt: skip
    assert middle[-1.0] < middle[0.0] - 0.1 < middle[0.0] + 0.1 < middle[1.29]
    u = torch.rand(10, dtype=torch.float64)
    close(continuous(Times(rule="mode", peak=0.0), u), u, 1e-12)
    close(continuous(Times(rule="mode"), u), continuous(Times(rule="mode", peak=1.29), u), 0)


def test_what_mode_and_schedules_have_no_use_for() -> None:
    assert [key for key, _ in level_problems(Times(rule="mode", range=(0.1, 0.9), mean=1.0, table=10), 4)] == [
        "range",
        "mean",
    ]
    assert [key for key, _ in level_problems(Times(rule="uniform", peak=1.0, table=10), 4)] == ["peak"]
    assert [key for key, _ in level_problems(Times(rule="discrete", peak=1.0, table=10), 4)] == ["peak", "table"]


@each("time_sampling", lambda case: case["inputs"]["kind"] == "logit_normal")
def test_logit_normal_is_flow_factorys_towards_noise(case: Case) -> None:
    """What Flow-Factory takes for the fraction of denoising (so its shift leads to clean samples), we, as the authors
    of AWM, take for the noise level; and we cut the distribution to the range instead of squeezing it."""
    given, expected = case["inputs"], case["outputs"]["timesteps"][:, 0].double() / 1000
    low, high = given["timestep_range"]
    theirs = (1 - expected - low) / (high - low)
    times = Times(rule="logit-normal", range=(0.0, 1.0), shift=given["time_shift"])
    quantiles = strata(given["u"].double()[None])[0] if "u" in given else torch.special.ndtr(given["normal"].double())
    close(continuous(times, quantiles).sort().values, theirs.sort().values, 2e-6)


@each("time_sampling", lambda case: case["inputs"]["kind"] == "discrete")
def test_steps_equal_flow_factory_and_awm(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    if "num_steps" in given:
        end = int(given["num_steps"] * given["timestep_fraction"])
    else:
        end = expected["valid_index_range"][1]
    assert step_strata(given["u"][None], 0, end)[0].tolist() == expected["indices"].tolist()


@each("time_sampling", lambda case: case["inputs"]["kind"] == "discrete_with_init" and "num_steps" in case["inputs"])
def test_steps_with_the_first_equal_awm(case: Case) -> None:
    given = case["inputs"]
    end = int(given["num_steps"] * given["timestep_fraction"])
    ours = [0, *step_strata(given["u"][None], 1, end)[0].tolist()]
    assert ours == case["outputs"]["indices"].tolist()


@each("time_sampling", lambda case: case["inputs"]["kind"] == "discrete_with_init" and case["inputs"]["T"] == 1)
def test_a_single_step_with_the_first_is_the_first(case: Case) -> None:
    drawn = levels(Times(rule="discrete-with-first", count=1), samples=2)
    close(drawn * 1000, case["outputs"]["timesteps"], 1e-3)


# --- what is drawn -------------------------------------------------------------------------------------------------


def test_discrete_reaches_every_step_the_last_too() -> None:
    """Flow-Factory never draws its last valid step, whatever the range."""
    drawn = levels(Times(rule="discrete", count=3))
    assert set(drawn.flatten().tolist()) == set(GRID[:-1].tolist())
    assert drawn.shape == (3, SAMPLES)
    assert (drawn.diff(dim=0) < 0).all()


def test_discrete_variants() -> None:
    with_first = levels(Times(rule="discrete-with-first", count=3))
    assert (with_first[0] == 1).all()
    assert (with_first[1:] < 1).all()
    without = levels(Times(rule="discrete-without-first", count=3))
    assert set(without.flatten().tolist()) == set(GRID[1:-1].tolist())


def test_a_fraction_leaves_out_the_clean_end() -> None:
    drawn = levels(Times(rule="discrete", fraction=0.75))
    assert set(drawn.flatten().tolist()) == set(GRID[:7].tolist())


def test_a_subset_has_no_level_twice() -> None:
    """DiffusionNFT: all levels of the schedule but one, which is another for each sample."""
    drawn = levels(Times(rule="subset"))
    assert drawn.shape == (9, SAMPLES)
    assert all(len(set(column.tolist())) == 9 for column in drawn.T[:50])
    missing = [(set(GRID[:-1].tolist()) - set(column.tolist())).pop() for column in drawn.T]
    assert all(abs(missing.count(level) - SAMPLES / 10) < 100 for level in GRID[:-1].tolist())
    assert levels(Times(rule="subset", count=2)).shape == (2, SAMPLES)


@given(
    rule=st.sampled_from(["uniform", "logit-normal"]),
    low=st.floats(0, 0.45),
    high=st.floats(0.55, 1),
    shift=st.floats(0.2, 5),
    count=st.integers(1, 7),
)
@settings(max_examples=40, deadline=None)
def test_ranges_hold_after_the_shift(rule: str, low: float, high: float, shift: float, count: int) -> None:
    """Flow-Factory shifts after it has put levels in the range, and so out of it again."""
    drawn = levels(Times(rule=rule, range=(low, high), shift=shift, count=count), samples=20)  # type: ignore[arg-type]
    assert drawn.shape == (count, 20)
    assert drawn.min() >= low - 1e-6
    assert drawn.max() <= high + 1e-6


@pytest.mark.parametrize("rule", ["uniform", "logit-normal"])
def test_shift_leads_to_noise(rule: str) -> None:
    plain, noisy = (levels(Times(rule=rule, shift=a)).mean() for a in (1.0, 3.0))  # type: ignore[arg-type]
    assert plain.item() == pytest.approx(0.5, abs=0.01)
    assert noisy > 0.65


def test_distributions() -> None:
    uniform = levels(Times(rule="uniform", range=(0.2, 0.8), count=1))
    close(torch.quantile(uniform, torch.tensor([0.25, 0.5, 0.75])), torch.tensor([0.35, 0.5, 0.65]), 0.02)
    normal = torch.logit(levels(Times(rule="logit-normal", range=(0.0, 1.0), mean=0.4, std=0.7, count=1)))
    assert normal.mean().item() == pytest.approx(0.4, abs=0.04)
    assert normal.std().item() == pytest.approx(0.7, abs=0.04)


def test_each_level_has_its_own_stratum() -> None:
    """Six levels of one sample are spread evenly, which six independent draws are not."""
    drawn = levels(UNIFORM)
    assert ((drawn * 6).long() == torch.arange(6)[:, None]).all()


def test_samples_keep_their_levels_whoever_shares_the_batch() -> None:
    keys = [("times", i) for i in range(5)]
    together = noise_levels(UNIFORM, GRID, Draws(keys))
    assert torch.equal(together[:, 3:4], noise_levels(UNIFORM, GRID, Draws(keys[3:4])))


def test_shift_is_undone_by_its_inverse() -> None:
    s = torch.linspace(0, 1, 11, dtype=torch.float64)
    close(shifted(shifted(s, 3.0), 1 / 3), s, 1e-12)
    close(shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0), torch.tensor([0.0, 0.75, 1.0]), 1e-7)


def test_noised_mixes_per_sample_in_float32() -> None:
    x0, noise = torch.randn(2, 2, 3, 4).to(torch.bfloat16), torch.randn(2, 2, 3, 4)
    mixed = noised(x0[0], noise[0], torch.tensor([0.0, 1.0]))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed[0], x0[0, 0].float())
    assert torch.equal(mixed[1], noise[0, 1])


@pytest.mark.parametrize(
    ("times", "key", "words"),
    [
        (Times(rule="discrete", shift=2.0), "shift", "no meaning for rule 'discrete'"),
        (Times(rule="uniform", std=2.0), "std", "no meaning"),
        (Times(rule="uniform", fraction=0.5), "fraction", "no meaning"),
        (Times(rule="uniform", range=(0.5, 0.5)), "range", "[lowest, highest]"),
        (Times(rule="logit-normal", range=(0.2, 0.3), std=0.01), "std", "no noise level is ever drawn"),
        (Times(rule="logit-normal", range=(0.6, 1.0), std=0.01), "std", "no noise level is ever drawn"),
        (Times(rule="logit-normal", mean=-200.0), "std", "no noise level is ever drawn"),
        (Times(rule="subset", count=11), "count", "at most 10"),
        (Times(rule="discrete", fraction=0.05), "fraction", "too few of 10 steps"),
        (Times(rule="discrete-without-first", fraction=0.1), "fraction", "too few of 10 steps"),
    ],
)
def test_what_is_wrong_is_said(times: Times, key: str, words: str) -> None:
    ((found, message),) = level_problems(times, 10)
    assert found == key
    assert words in message


def test_nothing_is_wrong_with_defaults() -> None:
    for rule in ("uniform", "logit-normal", "discrete", "discrete-with-first", "discrete-without-first", "subset"):
        assert level_problems(Times(rule=rule), 2) == []  # type: ignore[arg-type]


def test_a_decay_that_starts_above_its_limit_is_refused() -> None:
    ((found, message),) = decay_problems(Decay(start=0.9, limit=0.5, rate=0.0))
    assert (found, message) == ("start", "expected at most `limit`, 0.5, not 0.9")
    assert [*decay_problems(Decay(start=0.5, limit=0.5, rate=0.0))] == []


@pytest.mark.parametrize("std", [0.3, 0.1, 0.07, 0.04])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.3), (0.7, 0.8), (0.4, 0.9), (0.55, 1.0), (0.0, 0.45)])
def test_a_logit_normal_far_from_its_mean_has_its_quantiles(low: float, high: float, std: float) -> None:
    """Up to 35 deviations away; against the integral of its density, on either side of the mean alike."""
    times = Times(rule="logit-normal", range=(low, high), std=std)
    assert level_problems(times, 10) == []
    u = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    found = continuous(times, u)
    z = torch.linspace(*(logit(end) for end in (low, high)), 400_001, dtype=torch.float64)
    density = (-0.5 * (z / std) ** 2 + 0.5 * (z / std).pow(2).min()).exp()
    below = torch.cat([torch.zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)])
    expected = torch.sigmoid(z[torch.searchsorted(below / below[-1], u)])
    close(found, expected, 1e-4)
    assert (found.diff() > 0).all()
    mirrored = continuous(attrs.evolve(times, range=(1 - high, 1 - low)), 1 - u)
    close(mirrored, 1 - found, 1e-9)


def logit(level: float) -> float:
    """Its logit, at most 6 either way."""
    return max(-6.0, min(6.0, float(torch.logit(torch.tensor(level, dtype=torch.float64)))))


@pytest.mark.parametrize("rule", ["uniform", "logit-normal"])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_levels_keep_to_their_range_at_the_ends_of_the_draws(rule: str, shift: float) -> None:
    for low, high in ((0.01, 1.0), (0.2, 0.3), (0.0, 1.0)):
        times = Times(rule=rule, range=(low, high), shift=shift)  # type: ignore[arg-type]
        found = continuous(times, torch.tensor([0.0, 2**-25, 0.5, 1 - 2**-25, 1.0], dtype=torch.float64))
        assert low <= float(found.min()) <= float(found.max()) <= high
        assert float(found[1]) > 0


# --- decay of weight sets ------------------------------------------------------------------------------------------

DECAYS = {
    "nft_return_decay_type0": Decay(rate=0.0, limit=0.0),
    "nft_return_decay_type2": Decay(rate=0.0075, limit=0.999, flat=75),
    "ff_piecewise_linear": Decay(rate=0.001, limit=0.5),
    "crd_compute_decay_1": Decay(rate=0.001, limit=0.5),
    "crd_compute_decay_0-0.25-0.005-0.999": Decay(rate=0.005, limit=0.999, start=0.25),
    "crd_compute_decay_offline": Decay(rate=0.0, limit=1.0, start=1.0),
}


@each("decay_schedules", lambda case: case["name"] in DECAYS)
def test_decays_equal_their_authors(case: Case) -> None:
    decay = DECAYS[case["name"]]
    ours = torch.tensor([decay.at(step) for step in case["inputs"]["steps"]], dtype=torch.float64)
    close(ours, torch.tensor(case["outputs"]["decay"], dtype=torch.float64), 1e-12)
