"""What unmerged LoRA costs a pass, by rank: CPU seconds of rollouts of a wider FLUX with and without `merged`.

Run by hand: `OMP_NUM_THREADS=1 python tests/benchmarks/merged.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext

import torch
from diffusers import FluxTransformer2DModel
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Lora
from flowfactory_plugin_flux import FluxSpec

RANKS = (4, 16, 64)
STEPS = 4


def network() -> FluxTransformer2DModel:
    """Two double and four single blocks, 512 wide."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=256,
        pooled_projection_dim=128,
        axes_dims_rope=(16, 24, 24),
    )


@torch.no_grad()
def seconds(net: FluxTransformer2DModel, weights: Weights, merged: bool) -> float:
    """CPU seconds of a rollout of two samples of 256 tokens and 64 of text, the merging included."""
    given = {
        "hidden_states": torch.randn(2, 256, 64),
        "encoder_hidden_states": torch.randn(2, 64, 256),
        "pooled_projections": torch.randn(2, 128),
        "timestep": torch.full((2,), 0.5),
        "img_ids": torch.zeros(256, 3),
        "txt_ids": torch.zeros(64, 3),
    }
    begun = time.process_time()
    with weights.merged() if merged else nullcontext():
        for _ in range(STEPS):
            net(**given)
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print("| rank | apart, CPU seconds | merged | saved |\n|---|---|---|---|")
    for rank in RANKS:
        net = network()
        weights = Weights({"transformer": net}, Lora(rank=rank, alpha=float(rank)), FluxSpec.targets, [], 0)
        taken = [[seconds(net, weights, merged) for merged in (False, True)] for _ in range(rounds + 1)][1:]
        apart, merged = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"| {rank} | {apart:.3f} | {merged:.3f} | {1 - merged / apart:.1%} |")


if __name__ == "__main__":
    main()
