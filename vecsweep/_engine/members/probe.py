"""Probe: what one kind of batch does to a model, seen by ordinary forward passes before anything is batched."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from vecsweep._engine.caller.copying import accumulation_hooks_of, hooks_of
from vecsweep._engine.caller.rng import Streams, is_same_but_for_numbers, is_same_state
from vecsweep._engine.caller.watch import Watch
from vecsweep._engine.data.layouts import has_strides, ragged_in
from vecsweep._engine.members.learner import Learner, taken_out
from vecsweep._engine.members.reads import Reads, reads_of_callers, tell_of_callers, tell_of_shared, tell_of_written
from vecsweep._engine.members.sameness import is_same
from vecsweep._engine.members.single_pass import is_read_on_other_data, registered_in, single_pass, why_registered
from vecsweep._engine.members.work import Work, WorkCounter
from vecsweep._types import Batch
from vecsweep.kernels.rules import Draw, Recorder, checkpoints_run_through


@dataclass(frozen=True, slots=True)
class Probe:
    """What training on a kind of batch does.

    Attributes:
        draws: what the model draws at random.
        changed_buffers: the names of the buffers that a pass changes, and of the parameters that are not trained.
        member_buffers: those among them that other weights change otherwise, so that each member needs its own.
        obstacle: why members cannot be batched, if a pass shows a reason.
        is_stateful: whether it is that a pass keeps something in Python for the next.
        activation_bytes: what one member keeps for its backward pass, parameters and the batch aside.
        work: of one member's step.
        draws_numbers: whether a pass draws from the generators of Python or NumPy.
    """

    draws: list[Draw]
    changed_buffers: frozenset[str]
    member_buffers: frozenset[str]
    obstacle: str | None
    is_stateful: bool
    activation_bytes: int
    work: Work
    draws_numbers: bool = False


def probe(learner: Learner, batch: Batch, seed: int, streams: Streams) -> Probe:
    """Run ordinary forward passes over a batch; nothing of the learner changes, nor where the streams stand.

    Args:
        learner: of the seed.
        batch: one batch.
        seed: whose random stream the model draws from.
        streams: the random streams of the run.

    Raises:
        TypeError: the loss is not a tensor.
        ValueError: the loss is not a scalar, or does not depend on what is trained.
    """
    original, learner = learner, learner.copy()  # what a loss does to parameters or attributes in place stays there
    parameters: dict[str, Tensor] = {name: _clone(p) for name, p in learner.parameters.items()}
    start = streams.mark("model", seed)
    rewind = partial(streams.rewind, "model", seed, start)
    recorder, counter = Recorder(), WorkCounter()
    reads, callers = Reads(_named(learner)), reads_of_callers(learner)
    watch = Watch.of_pass(learner.task, learner.model, has_numbers=True)
    with watch.undisturbed():
        with recorder, checkpoints_run_through() as checkpoints:
            seen = single_pass(learner, parameters, batch, [counter, reads, callers])
            loss, first = seen.loss, seen.changed
        end = streams.mark("model", seed)
        registered = registered_in(original, learner)
        for name in filter(lambda name: f"{name}_orig" in registered, learner.parameters):  # as pruning names them
            raise taken_out(name)
        nodes = _autograd_nodes(loss)
        _check_depends_on(nodes, [*learner.model.parameters(), *parameters.values()])
        tell_of_callers(callers)
        tell_of_written(learner, batch, seen.batch)
        activation_bytes = _count_activations(nodes, parameters.values())
        rewind()
        for draw in recorder.draws:
            draw()
        repeated = streams.mark("model", seed)
        is_repeatable = is_same_but_for_numbers(repeated, end)
        draws_numbers = not is_same_state(repeated, end)
        keeps = bool(watch.changes())
        kept, changed, member_buffers = list[str](), frozenset(first), frozenset[str]()
        others = dict[str, Tensor]()
        if keeps or learner.constants:
            others = {name: _clone(1.1 * p + 0.01) for name, p in parameters.items()}
            watch.restore()
            rewind()
            with checkpoints_run_through():  # and autograd, because a loss may take gradients itself
                elsewhere = single_pass(learner, others, batch).changed
            # An average of weights that starts at the weights is changed only by other weights.
            changed, member_buffers = changed.union(elsewhere), _differing(first, elsewhere)
        if keeps:
            # What another pass has left, with other weights: is it read by the next, or does it count passes?
            rewind()
            after = Watch.of_pass(learner.task, learner.model, has_numbers=True)
            with checkpoints_run_through():
                again = single_pass(learner, parameters, batch).loss
            counting, renewed = after.grown()
            names = watch.names(watch.changes())
            left = [] if is_same(loss, again) else [*names, *renewed]
            if not (counting or left or all(map(_is_of_recurrent, names))):
                left = names if is_read_on_other_data(learner, parameters, batch, watch, rewind) else []
            # What recurrent layers list of their weights comes last: it is new in every pass, and not the reason.
            kept = sorted([*counting, *left], key=_is_of_recurrent)
        if any(first[name].is_floating_point() for name in first.keys() - member_buffers):
            # What counts choices, as of the codes of a codebook, differs only for weights that choose otherwise.
            watch.restore()
            rewind()
            with checkpoints_run_through(), suppress(Exception):  # of weights that the model refuses
                turned: dict[str, Tensor] = {name: _clone(p.flatten().roll(1).view_as(p)) for name, p in others.items()}
                member_buffers |= _differing(first, single_pass(learner, turned, batch).changed)
        if changed and dict(learner.model.named_buffers()).keys() - changed:
            # What is copied from a buffer follows it a pass later, as in an average of a model with batch norm.
            later = []
            for weights, before in ((parameters, first), (others, elsewhere)):
                watch.restore()
                rewind()
                with checkpoints_run_through():
                    later.append(before | single_pass(learner, weights, batch, before=before).changed)
            changed, member_buffers = changed.union(*later), member_buffers | _differing(*later)
        tell_of_shared(original, watch.shared(watch.changes()))
    rewind()
    obstacle = set_up = None
    if registered:
        set_up = why_registered(original, registered, others, batch)
        rewind()
        changed, member_buffers = changed.difference(registered), member_buffers.difference(registered)
    if set_up:
        obstacle = set_up
    elif kept:
        obstacle = f"the forward pass keeps something for the next in {kept[0]}"
    elif seen.replaced:
        obstacle = f"the forward pass puts a new parameter in the place of {seen.replaced[0]!r}; a buffer may change"
    elif written := [name for name, p in original.parameters.items() if not is_same(p, parameters[name])]:
        obstacle = f"the forward pass changes the parameter {written[0]!r} in place"
    elif reads.obstacle:
        obstacle = reads.obstacle
    elif checkpoints.has_any and changed:
        name = next(filter(changed.__contains__, learner.constants))
        obstacle = f"a recomputed checkpoint may change {name!r} twice"
    elif ragged := ragged_in(batch):
        obstacle = f"{ragged} in the batches; pad samples, and mask the loss"
    elif not is_repeatable:
        obstacle = "the forward pass draws random numbers in a way that cannot be repeated for all members at once"
    elif hooked := _hooked(learner):
        obstacle = f"gradients pass through a hook of {hooked}"
    num_parameters = sum(p.numel() for p in learner.parameters.values())
    work = counter.work(learner.model, num_parameters)
    return Probe(
        recorder.draws,
        changed,
        member_buffers,
        obstacle,
        bool(kept),
        activation_bytes,
        work,
        draws_numbers,
    )


def _clone(p: Tensor) -> nn.Parameter:
    """A parameter that takes the place of another, in memory of its own."""
    return nn.Parameter(p.detach().clone())


def _named(learner: Learner) -> dict[str, Tensor]:
    """What is a member's own, by name: a pass is given other tensors in the place of these."""
    return {n: t for n, t in (learner.parameters | learner.constants).items() if n not in learner.objective.lent}


def _autograd_nodes(loss: Tensor) -> list[Any]:
    """Everything that autograd would go through on its way back from the loss."""
    pending, seen = [loss.grad_fn], dict[Any, None]()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen[node] = None
            pending += [following for following, _ in node.next_functions]
    return list(seen)


def _count_activations(nodes: Sequence[Any], parameters: Iterable[Tensor]) -> int:
    """The bytes that autograd keeps for each member: what depends on its parameters, and they themselves aside."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept = {}
    for node in nodes:
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            if isinstance(value, Tensor) and value.requires_grad and has_strides(value):
                kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(num_bytes for place, num_bytes in kept.items() if place not in own)


def _check_depends_on(nodes: Sequence[Any], parameters: Iterable[Tensor]) -> None:
    """Raise ValueError unless a loss depends on some of these parameters, and on no others."""
    if not nodes:
        raise ValueError(
            "The loss must depend on the trained parameters; got one that does not require grad. Look for "
            "`.detach()`, `.item()` or `torch.no_grad()` between the model's output and the loss."
        )
    own = set(map(id, parameters))
    for node in nodes:
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter) and id(variable) not in own:
            raise ValueError(
                "The loss must depend on the parameters of the model it is given; got one of shape "
                f"{tuple(variable.shape)} that is not this model's. Members are copies: let the loss reach them "
                "through its `model` argument, keep layers in an `nn.ModuleList`, and call a model that is not trained "
                "under `torch.no_grad()`, or after `requires_grad_(False)`."
            )


def _hooked(learner: Learner) -> str | None:
    """Name a part of the model that has a hook on gradients, which autograd outside vmap would not call."""
    for name, parameter in learner.model.named_parameters():
        if hooks_of(parameter) or accumulation_hooks_of(parameter):
            return f"the parameter {name!r}"
    for path, module in learner.model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            return f"the module {path!r}"
    return None


def _is_of_recurrent(name: str) -> bool:
    return "._flat_weight" in name


def _differing(first: Mapping[str, Tensor], elsewhere: Mapping[str, Tensor]) -> frozenset[str]:
    """The names of what two passes have not changed to the same."""
    common = first.keys() & elsewhere.keys()
    alike = {name for name in common if is_same(first[name], elsewhere[name])}
    return frozenset((first.keys() | elsewhere.keys()) - alike)
