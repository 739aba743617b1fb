"""Fingerprint: what tells one batch from another, in a few bytes that can be kept."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vecsweep._engine.data.layouts import has_strides
from vecsweep._engine.data.packing import VALUES, tree_flatten
from vecsweep._types import Batch


class Fingerprint(NamedTuple):
    """A batch's.

    Attributes:
        form: its containers, shapes and dtypes, for people.
        digest: of all that is in it; None if that need not be the same.
    """

    form: str
    digest: str | None


def fingerprint(batch: Batch) -> Fingerprint:
    """Take a batch's fingerprint; it is the same on every device."""
    leaves, structure = tree_flatten(batch)
    form = f"{', '.join(map(_form_of, leaves))} in {structure}"
    digest = hashlib.blake2b(form.encode(), digest_size=16)
    for leaf in leaves:
        digest.update(content_of(leaf))
    return Fingerprint(form, digest.hexdigest())


def _form_of(leaf: Any) -> str:
    if isinstance(leaf, Tensor) and leaf.is_nested:
        return f"{leaf.dtype} nested"
    if isinstance(leaf, Tensor | np.ndarray):
        return f"{leaf.dtype} {list(leaf.shape)}"
    return type(leaf).__name__


def content_of(leaf: Any) -> bytes:
    """The bytes of a tensor, an array or a plain value; none of what is anything else."""
    if isinstance(leaf, Tensor) and has_strides(leaf):
        return leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(leaf, np.ndarray):
        return leaf.tobytes()
    return repr(leaf).encode() if isinstance(leaf, VALUES) else b""
