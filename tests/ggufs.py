"""Files in GGUF, as ComfyUI's users have them."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch


def gguf_file(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Weights with rows of a multiple of 32 in 8 bits, the others as they are."""
    writer = gguf.GGUFWriter(path, "tiny")
    writer.add_array("facts", ["of", "several", "types"])
    writer.add_array("numbers", [1, 2, 3])
    for name, tensor in state.items():
        data = tensor.float().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if data.ndim == 2 and data.shape[1] % 32 == 0 else None
        writer.add_tensor(name, data if kind is None else gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
