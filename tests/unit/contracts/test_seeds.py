"""Random numbers that depend only on what they are for."""

import math
from collections import Counter

import pytest
import torch
from flowfactory.contracts.digest import hash_of, seed_of
from flowfactory.contracts.seeds import Draws
from torch import Tensor

MANY = [(0, purpose, epoch, slot) for purpose in ("start", "steps") for epoch in range(20) for slot in range(50)]


def test_seeds_are_stable_across_versions_and_machines() -> None:
    assert seed_of(0, "start", 1, 2, 3) == 6939984324100522283
    assert hash_of(0, "start", 1, 2, 3) == 0xEEA5A423B7D5CE0769211B5C9908C894
    assert seed_of(0, "start", 12, 3) != seed_of(0, "start", 1, 23)
    assert seed_of("1") != seed_of(1)
    assert 0 <= seed_of("anything") < 2**63


def test_a_sample_draws_the_same_whoever_shares_its_batch() -> None:
    keys = [(0, "terms", slot) for slot in range(4)]
    together, alone = Draws(keys), [Draws([key]) for key in keys]
    for draw in (lambda d: d.normal(3, 2), lambda d: d.uniform(5), lambda d: d.permutation(6), lambda d: d.normal()):
        torch.testing.assert_close(draw(together), torch.cat([draw(one) for one in alone]), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 2, 5)])
def test_draws_have_the_shape_that_was_asked_for(shape: tuple[int, ...]) -> None:
    for count in (0, 3):
        draws = Draws([(0, n) for n in range(count)])
        for made in (draws.normal(*shape), draws.uniform(*shape)):
            assert (made.shape, made.dtype) == ((count, *shape), torch.float32)
        assert (draws.permutation(4).shape, draws.permutation(4).dtype) == ((count, 4), torch.int64)


def test_streams_whose_names_share_half_a_hash_differ() -> None:
    """The lower 32 bits of these two seeds are equal, which is all that torch's CPU generator looks at."""
    one, other = (0, "start", 44, 20, 4), (0, "steps", 51, 11, 17)
    assert seed_of(*one) % 2**32 == seed_of(*other) % 2**32
    assert not (Draws([one]).normal(16) == Draws([other]).normal(16)).any()


def test_no_two_of_many_streams_are_equal_or_correlated() -> None:
    drawn = Draws(MANY).normal(64).double()
    assert len({tuple(row) for row in drawn.tolist()}) == len(MANY)
    correlations = (drawn @ drawn.T / math.sqrt(drawn.shape[1])).triu(1)
    pairs = correlations[correlations != 0]
    assert abs(float(pairs.mean())) < 5 / math.sqrt(len(pairs))
    assert float(pairs.std()) == pytest.approx(1, abs=0.01)
    assert float(pairs.abs().max()) < 6.5


def kolmogorov(probabilities: Tensor) -> float:
    """Distance of uniform draws from their distribution, times the root of their number: beyond 1.95 is p 0.1 %."""
    ordered = probabilities.double().flatten().sort().values
    grid = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float(torch.maximum(grid[1:] - ordered, ordered - grid[:-1]).max()) * math.sqrt(len(ordered))


def test_normal_draws_are_normal_within_a_stream_and_across_streams() -> None:
    for drawn in (Draws([(1, "long")]).normal(200_000), Draws([(1, n) for n in range(20_000)]).normal()):
        assert kolmogorov(torch.special.ndtr(drawn.double())) < 1.95
        assert float(drawn.double().mean()) == pytest.approx(0, abs=4 / math.sqrt(drawn.numel()))
        fourth = float(drawn.double().pow(4).mean())
        assert fourth == pytest.approx(3, abs=4 * math.sqrt(96 / drawn.numel()))


def test_uniform_draws_are_uniform_and_below_1() -> None:
    for drawn in (Draws([(2, "long")]).uniform(200_000), Draws([(2, n) for n in range(20_000)]).uniform()):
        assert kolmogorov(drawn) < 1.95
        assert 0 <= float(drawn.min()) <= float(drawn.max()) < 1


def test_every_order_is_as_likely() -> None:
    orders = Counter(map(tuple, Draws([(3, n) for n in range(12_000)]).permutation(4).tolist()))
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    chi_square = sum((count - 500) ** 2 / 500 for count in orders.values())
    assert len(orders) == 24
    assert chi_square < 49.7  # 23 degrees of freedom, p 0.1 %


def test_successive_draws_of_a_stream_go_on() -> None:
    draws = Draws([(0, "terms")])
    assert not torch.equal(draws.normal(8), draws.normal(8))
    assert not torch.equal(draws.uniform(8), draws.uniform(8))
