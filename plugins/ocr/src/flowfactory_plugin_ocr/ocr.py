"""Text rendering as a reward: what RapidOCR reads in a sample against the quoted text of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import ClassVar

import numpy as np
import torch
from flowfactory import Reward, Sample, Score, Shared, some_frames, to_bytes
from numpy.typing import NDArray
from rapidocr import RapidOCR
from rapidocr.ch_ppocr_rec import TextRecOutput
from rapidocr.utils.output import RapidOCROutput
from torch import Tensor

from flowfactory_plugin_ocr import OCRSpec
from flowfactory_plugin_ocr.text import quoted, similarity

_POOLS: dict[str, Callable[[Sequence[float]], float]] = {"mean": lambda x: sum(x) / len(x), "min": min, "max": max}


class OCR(Reward):
    """1 where the quoted text can be read, 0 where nothing of it can; does not apply to prompts that quote nothing.

    The engine computes on the CPU, with the models its package carries.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})
    spec: OCRSpec
    engine: Engine

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        threads, detect = self.spec.threads, self.spec.detect
        self.engine = shared(f"rapidocr:{threads}:{detect}", lambda: Engine(threads, detect))

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> Score:
        wanted = quoted(sample.row.prompt)
        if wanted is None:
            return None
        frames = some_frames(sample.media, self.spec.frames)
        return _POOLS[self.spec.pool]([similarity(wanted, self.read(frame)) for frame in frames])

    def read(self, image: Tensor) -> str:
        """The text in an image `(3, H, W)` in [0, 1]: its lines, as the engine orders them."""
        lines = self.engine.lines(image)
        return " ".join(line for line, confidence in lines if confidence >= self.spec.confidence)


class Engine:
    """RapidOCR on onnxruntime, with the models of its own package. It keeps state while it reads: one at a time.

    Where lines are not to be looked for, an image is one, as it is; that also is much faster, since detection enlarges.
    """

    def __init__(self, threads: int, detect: bool) -> None:
        options: dict[str, object] = {"Global.log_level": "critical", "Global.text_score": 0.0}
        options |= {"Global.use_det": detect, "Global.use_cls": detect}
        if threads:
            options["EngineConfig.onnxruntime.intra_op_num_threads"] = threads
        self._engine, self._lock = RapidOCR(params=options), Lock()

    def lines(self, image: Tensor) -> list[tuple[str, float]]:
        """Each line of an image `(3, H, W)` in [0, 1], and how sure the engine is of it, in [0, 1]."""
        with self._lock:
            found = self._engine(blue_first(image))
        assert isinstance(found, RapidOCROutput | TextRecOutput), "recognition runs, and says what it found"
        return list(zip(found.txts or (), found.scores or (), strict=True))


def blue_first(image: Tensor) -> NDArray[np.uint8]:
    """An image `(3, H, W)` as `(H, W, 3)` bytes in the order OpenCV expects: blue, green, red."""
    array: NDArray[np.uint8] = to_bytes(image).flip(0).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(array)
