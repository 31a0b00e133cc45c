"""The goldens of Flow-GRPO's loss, as trainers that clip ratios of single steps take them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flowfactory.builtin import FlowSDESpec
from flowfactory.contracts.types import Batch
from flowfactory.schedulers.flow_sde import FlowSDE
from support import Case, transition


def golden_batch(case: Case) -> Batch:
    """The stored step of a golden, with the log-probability its old velocity gives."""
    given = case["inputs"]
    scheduler = FlowSDE(FlowSDESpec(eta=given["eta"]))
    x, x_next = given["latents"], given["next_latents"]
    sigmas = [1.0, given["sigma_max"], given["sigma"], given["sigma_next"]]
    levels = torch.tensor(given["sigma"]).expand(len(x)), torch.tensor(given["sigma_next"]).expand(len(x))
    old = scheduler.logprob(given["velocity_old"], x, x_next, *levels, given["sigma_max"])
    return transition(scheduler, sigmas, x, x_next, old, given["advantages"])


def golden_keys(case: Case) -> Mapping[str, float]:
    """How a golden clips, as keys of a `ClippedSpec`."""
    low, high = case["inputs"]["clip_range"]
    return {"clip_low": -low, "clip_high": high, "adv_clip": case["inputs"].get("adv_clip_range", [-5, 5])[1]}
