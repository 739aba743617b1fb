"""Numbers of another precision: real ones in a dtype, complex ones in that of which both their parts have it."""

import torch
from torch import Tensor, nn


def cast(
    tensor: Tensor,  # of any dtype
    dtype: torch.dtype | None,
) -> Tensor:
    """Return a tensor in a floating-point dtype, one of whole numbers as it is; None leaves all as they are."""
    if dtype is None:
        return tensor
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def place_(module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Take a module to a device, and its numbers to a dtype; `Module.to` would take imaginary parts away.

    Args:
        module: which.
        device: where to; None leaves it where it is.
        dtype: None leaves its numbers as they are.
    """
    if device is None and dtype is None:
        return  # a module may take even this as a word to its generators of random numbers
    if dtype is None or not any(tensor.is_complex() for tensor in (*module.parameters(), *module.buffers())):
        module.to(device=device, dtype=dtype)
    else:
        module.to(device=device)._apply(lambda tensor: cast(tensor, dtype))
