"""What cannot be batched, in words: the operator, the layer, and the line of the caller's code."""

import copy
import os
import re
import traceback
from pathlib import Path

import torch
from torch import nn

from vecsweep import kernels
from vecsweep._engine.members.objective import Objective
from vecsweep.kernels.rules import is_shared_write

_FOLDERS = (Path(torch.__file__).parent, Path(str(kernels.__file__)).parent, Path(__file__).parents[2])
_MEANT = {  # what a caller knows an operator by
    r"aten::(lstm|gru|rnn_tanh|rnn_relu)\.data": ", of packed sequences",
    r"aten::(where|nonzero\w*|masked_select|_?unique\w*)$": ", whose result is as large as values say",
}
_LIBRARIES = (copy.__file__, *(f"{folder}{os.sep}" for folder in _FOLDERS))


def explain(error: Exception) -> str:
    """Name what cannot be batched, the layer that it is in, and the line of the user's code that calls it."""
    stack = list(traceback.walk_tb(error.__traceback__))  # of frames and lines, the outermost first
    own = [place for place, (frame, _) in enumerate(stack) if not frame.f_code.co_filename.startswith(_LIBRARIES)]
    within = [frame.f_locals.get("self") for frame, _ in stack[own[-1] if own else 0 :]]
    layers = [layer for layer in within if isinstance(layer, nn.Module) and not isinstance(layer, Objective)]
    parts = [_reason(error)]
    if layers:
        parts.append(f"in the layer {type(layers[-1]).__name__}")
    if own:
        frame, line = stack[own[-1]]
        parts.append(f"at {frame.f_code.co_filename}:{line}")
    return ", ".join(parts)


def _reason(error: Exception) -> str:
    """Name the operator, or what else PyTorch says."""
    message = str(error).strip() or type(error).__name__
    sentence = re.split(r"(?<=\w)[.:](?:\s|$)|\n", message.removeprefix("vmap: "))[0]
    if "data-dependent control flow" in message:
        return "data-dependent control flow, such as `if` or `while` on the values of a tensor"
    if "sparse" in sentence.lower():
        return "a sparse tensor, such as a sparse matrix or the gradient of `nn.Embedding(..., sparse=True)`"
    if "can support dynamic shape" in message:
        return "a result that is as large as values say, such as the rows that a mask selects"
    if "access storage of BatchedTensorImpl" in message:
        return "a copy of a model or a tensor by `copy.deepcopy`"
    if "may have escaped from inside a function being vmapped" in message:
        return "an `autograd.Function` that computes with parameters it is not given"
    if "while in randomness error mode" in message:  # those of global generators are drawn before the step
        return "random numbers from a generator of the model's or the loss's own"
    if "data pointer of Tensor" in message:
        return "numbers taken out of a tensor, as by `.numpy()`"
    if written := re.match(r"(?:aten::)?(\w+)_\(self, \*extra_args\) is not possible", sentence):
        name = written.group(1)
        return f"`{name}_` would write what differs between members into a tensor that they share; `{name}` makes one"
    if is_shared_write(error):
        return "what differs between members would be written into a tensor that they share"
    if operator := re.search(r"aten::\w+(\.\w+)?|\.item\(\)", message):
        return operator.group() + next(
            (told for names, told in _MEANT.items() if re.match(names, operator.group())), ""
        )
    return sentence
