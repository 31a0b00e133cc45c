"""HPSv3 (Ma et al. 2025, arXiv:2508.03789): run in an environment of its own, by the authors' package."""

from flowfactory_scorer import device
from hpsv3 import HPSv3RewardInferencer

inferencer = HPSv3RewardInferencer(device=device())


def score(images, prompts, rows):
    """The authors' score: the mean of what the model says, without its spread. Of a video, that of its first frame."""
    stills = [image[0] if isinstance(image, list) else image for image in images]
    return [float(one[0]) for one in inferencer.reward(prompts=prompts, image_paths=stills)]
