"""The rules: each operator's forward and backward pass for all members, against vmap's own and the loop over members.

Ours is traced, as the engine runs it, and so is `vmap`; `eager` is ours untraced, with the cost of the mode and of vmap
themselves. `loop` is torch's operator, member after member. Shapes are those of the workloads; autograd runs outside
vmap, from a gradient laid out as the output is.
"""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Compare
from torch import Tensor
from torch.func import vmap
from vecsweep.kernels._trace import trace
from vecsweep.kernels.rules import RULES, MemberRules

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 7
CALL_S = 0.02  # arms that are shorter are called several times in a round
MAX_DEVIATION = 1e-4  # relative to the largest number in a tensor

Tensors = Sequence[Tensor]
Pass = Callable[[Tensors], list[Tensor]]  # from the members' tensors to outputs and gradients


@dataclass(frozen=True)
class Case:
    """An operator and its arguments.

    Attributes:
        function: whose rule is measured.
        compute: one member's output from its own tensors and the shared ones.
        own: shapes of what each member has of its own, and gradients are taken of.
        shared: makes what all members have in common.
        num_members: as in the workload.
        is_mappable: whether vmap has a rule of its own.
    """

    function: Callable[..., Any]
    compute: Callable[[Tensors, Tensors], Tensor]
    own: tuple[tuple[int, ...], ...]
    shared: Callable[[], tuple[Tensor, ...]] = tuple
    num_members: int = 16
    is_mappable: bool = True


def _conv2d(own: Tensors, shared: Tensors) -> Tensor:
    return F.conv2d(*shared, *own, padding=1)


def _batch_norm(own: Tensors, shared: Tensors) -> Tensor:
    x, weight, bias, mean, var = own
    return F.batch_norm(x, mean.detach().clone(), var.detach().clone(), weight, bias, training=True)


def _lstm(own: Tensors, shared: Tensors) -> Tensor:
    x, zeros = shared
    return torch.lstm(x, (zeros, zeros), list(own), True, 1, 0.0, True, False, True)[0]


def _gru(own: Tensors, shared: Tensors) -> Tensor:
    x, zeros = shared
    return torch.gru(x, zeros, list(own), True, 1, 0.0, True, False, True)[0]


def _sequences() -> tuple[Tensor, Tensor]:
    return torch.randn(32, 20, 64), torch.zeros(1, 32, 64)


_HEADS = ((8, 4, 32, 16),) * 3  # query, key, value of the char GPT
_IMAGES = (64, 32, 14, 14)  # between the convolutions of the CNN
_LSTM_WEIGHTS = ((256, 64), (256, 64), (256,), (256,))
_GRU_WEIGHTS = ((192, 64), (192, 64), (192,), (192,))

CASES = {
    "linear-shared-input": Case(
        F.linear,
        lambda own, shared: F.linear(*shared, *own),
        ((500, 784), (500,)),
        lambda: (torch.randn(64, 784),),
        num_members=32,
    ),
    "linear-own-input": Case(F.linear, lambda own, _: F.linear(*own), ((64, 500), (256, 500), (256,)), num_members=32),
    "linear-own-sequences": Case(F.linear, lambda own, _: F.linear(*own), ((8, 32, 64), (256, 64), (256,))),
    "conv2d-shared-input": Case(torch.conv2d, _conv2d, ((16, 1, 3, 3), (16,)), lambda: (torch.randn(64, 1, 28, 28),)),
    "conv2d-own-input": Case(torch.conv2d, _conv2d, ((64, 16, 14, 14), (32, 16, 3, 3), (32,))),
    "cross_entropy-classes": Case(
        F.cross_entropy,
        lambda own, shared: F.cross_entropy(*own, *shared),
        ((64, 10),),
        lambda: (torch.randint(10, (64,)),),
        num_members=64,
    ),
    "cross_entropy-positions": Case(
        F.cross_entropy,
        lambda own, shared: F.cross_entropy(*own, *shared),
        ((8, 65, 32),),
        lambda: (torch.randint(65, (8, 32)),),
    ),
    "attention-causal": Case(
        F.scaled_dot_product_attention,
        lambda own, _: F.scaled_dot_product_attention(*own, is_causal=True),
        _HEADS,
    ),
    "attention-masked": Case(
        F.scaled_dot_product_attention,
        lambda own, shared: F.scaled_dot_product_attention(*own, *shared),
        _HEADS,
        lambda: (torch.ones(32, 32, dtype=torch.bool).tril(),),
    ),
    "weight_norm": Case(
        torch._weight_norm, lambda own, _: torch._weight_norm(*own), ((256, 500), (256, 1)), num_members=32
    ),
    "lstm": Case(torch.lstm, _lstm, _LSTM_WEIGHTS, _sequences, is_mappable=False),
    "gru": Case(torch.gru, _gru, _GRU_WEIGHTS, _sequences, is_mappable=False),
    "layer_norm": Case(
        torch.layer_norm, lambda own, _: F.layer_norm(own[0], (64,), *own[1:]), ((8, 32, 64), (64,), (64,))
    ),
    "group_norm": Case(torch.group_norm, lambda own, _: F.group_norm(own[0], 8, *own[1:]), (_IMAGES, (32,), (32,))),
    "batch_norm": Case(torch.batch_norm, _batch_norm, (_IMAGES, (32,), (32,), (32,), (32,))),
    "max_pool2d-of-relu": Case(F.max_pool2d, lambda own, _: F.max_pool2d(F.relu(own[0]), 2), (_IMAGES,)),
    "embedding": Case(
        torch.embedding,
        lambda own, shared: F.embedding(*shared, *own),
        ((65, 64),),
        lambda: (torch.randint(65, (8, 32)),),
    ),
}


def _batched(case: Case, shared: Tensors, grad: Tensor | None, *, has_rules: bool) -> Pass:
    """All members under vmap, with autograd outside; without `grad` the forward pass alone."""

    def one(*own: Tensor) -> Tensor:
        with MemberRules([], []) if has_rules else nullcontext():
            return case.compute(own, shared)

    def run(own: Tensors) -> list[Tensor]:
        own = [tensor.detach().requires_grad_() for tensor in own]
        output = vmap(one)(*own)
        if grad is None:
            return [output.detach()]
        grads = torch.autograd.grad(output, own, grad, allow_unused=True)
        return [output.detach(), *(g for g in grads if g is not None)]

    return run


def _traced(batched: Pass, own: Tensors) -> Pass:
    """The graph of a pass."""
    graph = trace(lambda *own: batched(own), own).module()

    def run(own: Tensors) -> list[Tensor]:
        with torch.no_grad():
            return graph(*own)

    return run


def _looped(case: Case, shared: Tensors, grad: Tensor) -> Callable[[Tensors], list[tuple[Tensor, ...]]]:
    """Torch's operator, member by member."""
    grads = [of_member.contiguous() for of_member in grad]

    def run(own: Tensors) -> list[tuple[Tensor, ...]]:
        results = []
        for i in range(case.num_members):
            of_member = [tensor[i].detach().requires_grad_() for tensor in own]
            output = case.compute(of_member, shared)
            new = torch.autograd.grad(output, of_member, grads[i], allow_unused=True)
            results.append((output.detach(), *(g for g in new if g is not None)))
        return results

    return run


def _deviation(ours: Tensors, looped: list[tuple[Tensor, ...]]) -> float:
    """The largest difference of outputs and gradients, relative to the largest number of each."""
    expected = [torch.stack(of_members) for of_members in zip(*looped, strict=True)]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, expected, strict=True))


def _num_calls(arm: Callable[[], Any]) -> int:
    """How many calls of an arm are long enough for the clock."""
    started = time.perf_counter()
    arm()
    return max(1, int(CALL_S / (time.perf_counter() - started)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap's own, where it goes member by member
@pytest.mark.parametrize("name", CASES)
def bench_rules(name: str, compare: Compare) -> None:
    """Pass forward and backward through one operator, in every way."""
    case = CASES[name]
    assert case.function in RULES
    torch.manual_seed(0)
    own = [0.1 * torch.randn(case.num_members, *shape, device=DEVICE) for shape in case.own]
    shared = tuple(tensor.to(DEVICE) for tensor in case.shared())
    (output,) = _batched(case, shared, None, has_rules=True)(own)
    grad = torch.rand_like(output)  # also its layout
    ours = _batched(case, shared, grad, has_rules=True)
    passes: dict[str, Callable[[Tensors], Any]] = {"ours": _traced(ours, own), "eager": ours}
    if case.is_mappable:
        passes["vmap"] = _traced(_batched(case, shared, grad, has_rules=False), own)
    passes["loop"] = _looped(case, shared, grad)
    deviation = _deviation(passes["ours"](own), passes["loop"](own))
    arms = {arm: functools.partial(run, own) for arm, run in passes.items()}
    compare(arms, rounds=ROUNDS, calls=_num_calls(arms["loop"]), num_members=case.num_members, deviation=deviation)
    assert deviation < MAX_DEVIATION
