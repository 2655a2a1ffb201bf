"""What is given to be purified: NumPy arrays as tensors (N, C, H, W) and back, and what is no image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Numbers of channels that an image may have.
_CHANNELS = (1, 3)
ACCEPTED = "expected a Pillow image, a uint8 array (H, W, C) or a tensor (N, C, H, W)"


def refuse_other_kinds(given: object) -> None:
    """Raise :class:`TypeError` for what is no Pillow image: what is accepted, and what to do with a path or a list."""
    if isinstance(given, Image.Image):
        return
    kind = type(given).__name__
    if isinstance(given, (str, Path)):
        kind = f"a {kind}: open the file, as purifier(Image.open({str(given)!r}))"
    elif isinstance(given, (list, tuple)):
        kind = f"a {kind}: purify its images one by one, or stack them into one batch"
    raise TypeError(f"{ACCEPTED}, not {kind}")


def purify_array(array: np.ndarray, purify: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Purify a uint8 array (H, W), (H, W, C) or (N, H, W, C) as a tensor (N, C, H, W).

    Raises:
        TypeError: another dtype.
        ValueError: another shape; where the channels seem to stand first, the message says how to move them.
    """
    if array.dtype != np.uint8:
        raise TypeError(f"expected a uint8 array, not {array.dtype}; give floats as a tensor (N, C, H, W) in [0, 1]")
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"expected an array (H, W), (H, W, C) or (N, H, W, C), not {array.shape}")
    if array.ndim > 2 and array.shape[-1] not in _CHANNELS:
        raise ValueError(f"expected an array (H, W, C) or (N, H, W, C) with 1 or 3 channels last, not {array.shape}{_find_remedy(array)}")
    pixels = array[..., None] if array.ndim == 2 else array
    batch = np.ascontiguousarray(pixels if array.ndim == 4 else pixels[None])
    # PyTorch warns of an array that may not be written to, though nothing here does.
    given = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
    return purify(given.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous().numpy().reshape(array.shape)


def _find_remedy(array: np.ndarray) -> str:
    """What to do with an array whose channels seem to stand first, or are four."""
    if array.shape[-3] in _CHANNELS:
        moved = "transpose(1, 2, 0)" if array.ndim == 3 else "transpose(0, 2, 3, 1)"
        return f": its channels stand first; use array.{moved}, or torch.from_numpy(array){'[None]' if array.ndim == 3 else ''}"
    return ": leave alpha out, or give Image.fromarray(array), whose alpha is kept" if array.shape[-1] == 4 and array.ndim == 3 else ""
