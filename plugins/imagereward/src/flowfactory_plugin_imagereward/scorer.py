"""ImageReward (Xu et al. 2023, arXiv:2304.05977): run in an environment of its own, by the authors' package."""

import ImageReward
from flowfactory_scorer import device

model = ImageReward.load("ImageReward-v1.0", device=device())


def score(images, prompts, rows):
    """The authors' score. Of a video, the mean over its frames."""
    return [sum(map(float, each)) / len(each) for each in map(_each, images, prompts)]


def _each(shown, prompt):
    frames = shown if isinstance(shown, list) else [shown]
    return [model.score(prompt, frame) for frame in frames]
