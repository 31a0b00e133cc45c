"""A reward as large as PickScore with random weights, as a local plugin of the specs that `make gpu` runs."""

from __future__ import annotations

import attrs
import torch
from flowfactory import Provides, Reward, hookimpl, key
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

SIDE, PATCH = 224, 14


@attrs.frozen(kw_only=True)
class EyeSpec:
    """Keys of the reward."""

    layers: int = key("32 as in PickScore's.", default=32, ge=1)
    width: int = key("1280 as in PickScore's.", default=1280, ge=16)


class Eye(Reward):
    """What CLIP's vision network makes of a sample, on average."""

    def load(self, device, dtype, shared):
        width = self.spec.width
        config = CLIPVisionConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=self.spec.layers,
            num_attention_heads=width // 16, projection_dim=16, image_size=SIDE, patch_size=PATCH,
        )  # fmt: skip
        with torch.device(device):
            self.network = CLIPVisionModelWithProjection(config).to(device, dtype).eval()

    def place(self, device):
        self.network.to(device)

    @torch.no_grad()
    def score(self, samples):
        media = torch.stack([s.media if s.media.dim() == 3 else s.media[0] for s in samples])
        pixels = torch.nn.functional.interpolate(media, (SIDE, SIDE), mode="bilinear")
        network = self.network
        seen = network(pixel_values=pixels.to(network.device, network.dtype)).image_embeds
        return seen.float().mean(1).tolist()


@hookimpl
def flowfactory_rewards():
    yield Provides("eye", EyeSpec, Eye, "A vision network with random weights.")
