"""How much work a model's step is: counted and not timed, so that the same call is always carried out the same way."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Rates of one core, by which a step of each of the models of bench/bench_real.py is estimated within a factor of two or
# so. They need not be better, because what is chosen by them is far apart.
_OPERATOR_S = 35e-6  # of Python, dispatch and autograd, forward and backward
_CONVOLUTION_S = 300e-6  # besides, of a convolution's backward pass, which a depthwise one takes whatever it works on
_FLOPS = 1e11
_BYTES = 1e10
_PASSES = 3  # forward, and backward to inputs and to weights
_UPDATE_BYTES = 28  # of memory for each parameter, to read and write weights, gradients and moments
_LIGHT_OPERATORS = 40
_MOST_OPERATORS = 200
_CONVOLUTION = torch.ops.aten.convolution
_DETACH = torch.ops.aten.detach.default  # that autograd does beside each operator


class Work(NamedTuple):
    """What one member's step is made of.

    Attributes:
        num_operators: of a forward pass.
        flops: of a forward pass, in products and convolutions.
        num_bytes: that a forward pass writes.
        num_parameters: that are updated.
        num_convolutions: of the operators.
        is_recurrent: whether there are recurrent layers, of whose many operators it is known what batching makes.
    """

    num_operators: int
    flops: int
    num_bytes: int
    num_parameters: int
    num_convolutions: int = 0
    is_recurrent: bool = False

    @property
    def overhead_s(self) -> float:
        """Seconds of a step that operators take whatever they work on."""
        return _OPERATOR_S * self.num_operators

    @property
    def step_s(self) -> float:
        """Seconds of a step of one member on one core."""
        moved = _PASSES * self.num_bytes + _UPDATE_BYTES * self.num_parameters
        computed_s = _PASSES * self.flops / _FLOPS + _CONVOLUTION_S * self.num_convolutions
        return self.overhead_s + computed_s + moved / _BYTES

    @property
    def is_mostly_overhead(self) -> bool:
        """Whether most of a step is what batched members have in common; of very many operators that is not known."""
        is_known = self.num_operators <= _MOST_OPERATORS or self.is_recurrent
        return self.overhead_s > self.step_s / 2 and is_known

    @property
    def is_light(self) -> bool:
        """Whether most of a step is overhead, and soon traced."""
        return self.is_mostly_overhead and self.num_operators <= _LIGHT_OPERATORS


class WorkCounter(TorchDispatchMode):
    """Count what goes by, but for what is inside of `torch.cond` and its like."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.num_operators = self.num_convolutions = self.flops = self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked for, and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not isinstance(func, OpOverload):
            self.num_operators += 1
            return result
        self.num_operators += func is not _DETACH
        self.num_convolutions += func._overloadpacket is _CONVOLUTION
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        if not _is_view(func):
            leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            self.num_bytes += sum(leaf.nbytes for leaf in leaves if leaf.layout == torch.strided)
        return result

    def work(self, model: nn.Module, num_parameters: int) -> Work:
        """What went by, of a step of a model that updates so many parameters."""
        is_recurrent = any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in model.modules())
        return Work(self.num_operators, self.flops, self.num_bytes, num_parameters, self.num_convolutions, is_recurrent)


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether an operator only looks at the memory of what it is given."""
    return any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
