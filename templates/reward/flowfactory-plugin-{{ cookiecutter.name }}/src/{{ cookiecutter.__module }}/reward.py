"""How near the average colour of an image is to a wanted one: `1 - mean |average - wanted|`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from flowfactory import Reward, Sample

from {{ cookiecutter.__module }} import {{ cookiecutter.__class }}Spec


class {{ cookiecutter.__class }}(Reward):
    """1 for the wanted colour all over, 0 for its opposite; of a video, over all frames."""

    reads: ClassVar[frozenset[str]] = frozenset({"media"})
    spec: {{ cookiecutter.__class }}Spec

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        wanted = torch.tensor(self.spec.colour)
        averages = [sample.media.mean((-2, -1)) for sample in samples]
        return [1 - float((average - wanted).abs().mean()) for average in averages]
