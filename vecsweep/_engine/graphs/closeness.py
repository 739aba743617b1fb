"""How far two runs of a step may be apart because they round, and how many numbers are further apart."""

from collections.abc import Collection

import torch
from torch import Tensor

# Rounding, where operators are fused or sums reordered, by the least precise dtype that a step computes in.
_RTOL = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-12}


def rtol_of(dtypes: Collection[torch.dtype], device: torch.device) -> float:
    """The relative difference that rounding makes where a step computes in these dtypes."""
    rtol = next((rtol for dtype, rtol in _RTOL.items() if dtype in dtypes), 0.0)
    if torch.float32 in dtypes and _has_tf32(device):
        rtol = max(rtol, _RTOL[torch.float16])  # as many bits are kept of each factor
    return rtol


def _has_tf32(device: torch.device) -> bool:
    """Whether products of float32 may be rounded to TF32, or not, as a kernel for one shape does and another does not.

    PyTorch lets cuDNN's convolutions do so unless it is told otherwise, and matrix products if it is told to.
    """
    if device.type != "cuda":
        return False
    try:
        return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # so it answers if `fp32_precision`, the newer of its two ways, has been used
        return True


def num_off(a: Tensor, b: Tensor, rtol: float, scale: float = 0.0) -> int:
    """How many numbers differ by more than rounding, relative to the largest, or to a scale that is larger."""
    if not a.is_floating_point() or a.numel() == 0:
        return int((a != b).sum())
    a, b = a.nan_to_num(), b.nan_to_num()
    return int(((a - b).abs() > rtol * b.abs().max().clamp(min=scale)).sum())
