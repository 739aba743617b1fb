"""One update: each formula on stacked tensors against torch.optim's own, one optimizer for each member.

32 members of the MLP 784-500-256-10, fp32, fixed gradients. Ours is one compiled function over all parameters, which
writes in place; `traced` is its graph uncompiled. The yardstick is `copy`: a plain copy of as many bytes as the formula
must at least read and write, so that its ratio is the fraction of copy bandwidth that ours reaches; it is above 1 where
a copy costs more than its bytes, because caches read what is to be overwritten. Not here: what a step does around the
update (clipping, freezing), which bench_sweep.py has.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conftest import Interleave, Record
from measure import summary
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree
from vecsweep.kernels._compile import compile_graph
from vecsweep.kernels._trace import trace
from vecsweep.kernels.updates import UPDATES, State, Update

from vecsweep._engine.graphs.graph import fuse_writes_, split_off_scalars, write_in_place

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_MEMBERS = 32
SHAPES = ((500, 784), (500,), (256, 500), (256,), (10, 256), (10,))
ROUNDS = 7
CHECKED_STEPS = 10  # RAdam's second formula sets in at the sixth
MAX_DEVIATION = 1e-5  # relative to the largest number in a parameter


@dataclass(frozen=True)
class Case:
    """A formula and what it is held against.

    Attributes:
        optimizer: the torch.optim class.
        options: its hyperparameters, other than lr.
        target: the ratios aimed at, by arm.
        compiles_stock: whether torch's own step is compiled too, which takes long.
    """

    optimizer: type[Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    target: dict[str, float] = field(default_factory=dict)
    compiles_stock: bool = False


CASES = {
    "sgd": Case(torch.optim.SGD),
    "sgd-momentum": Case(torch.optim.SGD, {"momentum": 0.9}),
    "adam": Case(torch.optim.Adam),
    "adamw": Case(torch.optim.AdamW, target={"foreach": 2.5, "fused": 1.2}, compiles_stock=True),
    "nadam": Case(torch.optim.NAdam),
    "radam": Case(torch.optim.RAdam),
    "adamax": Case(torch.optim.Adamax),
    "adagrad": Case(torch.optim.Adagrad),
    "adadelta": Case(torch.optim.Adadelta),
    "rmsprop": Case(torch.optim.RMSprop),
}


@dataclass(frozen=True)
class Start:
    """What every arm starts from.

    Attributes:
        params: `[member, *shape]` each.
        grads: the same shapes.
        lrs: `[member]`, float64.
    """

    params: list[Tensor]
    grads: list[Tensor]
    lrs: Tensor

    @classmethod
    def make(cls, num_members: int, shapes: Sequence[tuple[int, ...]]) -> "Start":
        """Draw parameters and gradients of the usual sizes."""
        torch.manual_seed(0)
        params = [0.03 * torch.randn(num_members, *shape, device=DEVICE) for shape in shapes]
        grads = [0.01 * torch.randn(num_members, *shape, device=DEVICE) for shape in shapes]
        return cls(params, grads, torch.logspace(-4, -2, num_members, dtype=torch.float64, device=DEVICE))


class Stacked:
    """Ours: one update of all members, traced as the engine traces it, and on request compiled."""

    def __init__(self, case: Case, start: Start, *, is_compiled: bool) -> None:
        self.params = [p.clone() for p in start.params]
        update = UPDATES[case.optimizer]
        (group,) = case.optimizer([nn.Parameter(torch.zeros(1))], **case.options).param_groups
        hyper = {name: group[name] for name in update.hyperparameters} | {"lr": start.lrs}
        states = [update.init(p, **hyper) for p in self.params]
        self.moved_bytes = _moved_bytes(self.params, states)
        self._tensors = [*pytree.tree_leaves((self.params, states)), *start.grads, start.lrs]
        self._run = make_step_(update, self.params, states, hyper, self._tensors, is_compiled=is_compiled)

    def step(self) -> None:
        """Step all members."""
        with torch.no_grad():
            self._run(*self._tensors)


def make_step_(
    update: Update,
    params: Sequence[Tensor],  # each [member, *shape]
    states: Sequence[State],
    hyper: Mapping[str, Any],
    tensors: Sequence[Tensor],  # the leaves of params and states, then gradients, then lr [member]
    *,
    is_compiled: bool,
) -> Callable[..., Any]:
    """Make a function of these tensors that updates parameters and states in place."""
    leaves, structure = pytree.tree_flatten((params, states))

    def step(*tensors: Tensor) -> list[Tensor]:
        params, states = pytree.tree_unflatten(tensors[: len(leaves)], structure)
        *grads, lr = tensors[len(leaves) :]
        new_params, new_states = [], []
        for param, grad, state in zip(params, grads, states, strict=True):
            new_param, new_state = update.apply(param, grad, state, **{**hyper, "lr": lr})
            new_params.append(new_param)
            new_states.append({name: new_state[name] for name in state})
        return pytree.tree_leaves((new_params, new_states))

    with torch.no_grad():
        traced = trace(step, tensors)
    graph = write_in_place(traced.graph, len(leaves))
    if is_compiled:
        return compile_graph(split_off_scalars(traced.module(graph), len(params[0])), is_wanted=lambda: True)
    fuse_writes_(graph)
    return traced.module(graph).forward


def _moved_bytes(params: Sequence[Tensor], states: Sequence[State]) -> int:
    """What a formula must at least read (parameter, gradient, state) and write (parameter, state)."""
    kept = [value for state in states for value in state.values() if value.dim() > 1]  # counters are next to nothing
    return 3 * sum(p.nbytes for p in params) + 2 * sum(value.nbytes for value in kept)


class Stock:
    """torch.optim's: an optimizer for each member, one after another."""

    def __init__(self, case: Case, start: Start, *, is_compiled: bool = False, **how: bool) -> None:
        self.members = [[nn.Parameter(p[i].clone()) for p in start.params] for i in range(len(start.lrs))]
        for i, params in enumerate(self.members):
            for p, grad in zip(params, start.grads, strict=True):
                p.grad = grad[i]
        self._optimizers = [
            case.optimizer(params, lr=lr, **case.options, **how)
            for params, lr in zip(self.members, start.lrs.tolist(), strict=True)
        ]
        self.step = torch.compile(self._step) if is_compiled else self._step

    def _step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()


def _deviation(ours: Stacked, stock: Stock) -> float:
    """The largest difference between parameters, relative to the largest number of each."""
    expected = [torch.stack(of_members) for of_members in zip(*stock.members, strict=True)]
    pairs = zip(ours.params, expected, strict=True)
    return max(((p - q).abs().max() / q.abs().max()).item() for p, q in pairs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of its own parts
@pytest.mark.parametrize("name", CASES)
def bench_update(name: str, interleave: Interleave, record: Record, tiny: bool) -> None:
    """Take one step of a formula, in every way; each way has parameters and state of its own."""
    case = CASES[name]
    start = Start.make(2, SHAPES[-2:]) if tiny else Start.make(NUM_MEMBERS, SHAPES)
    torch.compiler.reset()
    ours, stock = Stacked(case, start, is_compiled=True), Stock(case, start, foreach=True)
    arms = {"ours": ours.step, "traced": Stacked(case, start, is_compiled=False).step, "foreach": stock.step}
    if "fused" in inspect.signature(case.optimizer).parameters:
        arms["fused"] = Stock(case, start, fused=True).step
    if case.compiles_stock:
        arms["stock_compiled"] = Stock(case, start, is_compiled=True, foreach=True).step
    source = torch.ones(ours.moved_bytes // 8, device=DEVICE)  # 4 bytes are read and 4 written
    destination = torch.ones_like(source)
    arms["copy"] = lambda: destination.copy_(source)
    # A stock optimizer is compiled anew for each member.
    with torch._dynamo.config.patch(recompile_limit=2 * len(start.lrs)):
        for _ in range(CHECKED_STEPS):
            for arm in arms.values():
                arm()
        deviation = _deviation(ours, stock)
        found = summary(interleave(arms, rounds=ROUNDS))
    aims: dict[str, Any] = {}
    if case.target:
        is_met = all(found["ratios"][arm] >= least for arm, least in case.target.items())
        aims = {"target": case.target, "met": is_met}
    record(**found, gb_s=ours.moved_bytes / 1e6 / found["ours_ms"], deviation=deviation, **aims)
    assert deviation < MAX_DEVIATION
