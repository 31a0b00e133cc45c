"""How sharp an image is, by scikit-image, from 0 to 1."""

import numpy as np
from skimage.measure import blur_effect


def score(images, prompts, rows):
    return [1 - float(blur_effect(np.asarray(image), channel_axis=-1)) for image in images]
