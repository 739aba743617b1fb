"""What trained members say of batches: outputs of one, or the mean of several."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch.func has no public way to go through nested containers

from vecsweep._types import Batch


def predict(models: Sequence[nn.Module], batches: Iterable[Batch]) -> Tensor:
    """Return the outputs for all samples, `[sample, ...]`, the mean over models; in eval mode, without gradients.

    Args:
        models: each is put into eval mode.
        batches: tensors, pairs `(inputs, targets)` whose targets are left alone, or dicts of the model's arguments.

    Raises:
        TypeError: a model's output is no tensor, and has no tensor `logits`.
        ValueError: there are no batches.
    """
    for model in models:
        model.eval()
    with torch.no_grad():
        outputs = [torch.stack([_output(model, batch) for model in models]).mean(0) for batch in batches]
    if not outputs:
        raise ValueError("`batches` must hold something; they yielded nothing. An iterator serves once: pass a list.")
    return torch.cat(outputs)


def _output(model: nn.Module, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    moved: Any = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
    if isinstance(moved, Mapping):
        output = model(**moved)
    else:
        output = model(moved[0] if isinstance(moved, tuple | list) else moved)
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"`predict` needs models whose output is a tensor, or has `logits`; got {type(output).__name__}. Call "
            "`runs.model(i)` yourself."
        )
    return output
