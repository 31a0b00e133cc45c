"""Random numbers that depend only on what they are for."""

import torch
from flowfactory.contracts.seeds import Draws, generator, seed_of


def test_seeds_are_stable_across_versions_and_machines() -> None:
    assert seed_of(0, "start", 1, 2, 3) == seed_of(0, "start", 1, 2, 3)
    assert seed_of(0, "start", 12, 3) != seed_of(0, "start", 1, 23)
    assert seed_of("1") != seed_of(1)
    assert 0 <= seed_of("anything") < 2**63


def test_a_sample_draws_the_same_whoever_shares_its_batch() -> None:
    keys = [(0, "terms", slot) for slot in range(4)]
    together, alone = Draws(keys), [Draws([key]) for key in keys]
    for draw in (lambda d: d.normal(3, 2), lambda d: d.uniform(5), lambda d: d.permutation(6)):
        torch.testing.assert_close(draw(together), torch.cat([draw(one) for one in alone]), rtol=0, atol=0)


def test_generators_of_different_purposes_differ() -> None:
    a, b = (torch.randn(8, generator=generator(0, purpose)) for purpose in ("start", "steps"))
    assert not torch.equal(a, b)
