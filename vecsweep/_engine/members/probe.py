"""Probe: what one kind of batch does to a model, seen by ordinary forward passes before anything is batched."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from vecsweep._engine.caller.copying import accumulation_hooks_of, hooks_of
from vecsweep._engine.caller.rng import Streams, is_same_but_for_numbers, is_same_state
from vecsweep._engine.caller.watch import Watch
from vecsweep._engine.data.layouts import has_strides, ragged_in
from vecsweep._engine.members.learner import Learner, taken_out
from vecsweep._engine.members.reads import Reads, reads_of_callers, tell_of_callers, tell_of_shared, tell_of_written
from vecsweep._engine.members.sameness import is_same
from vecsweep._engine.members.single_pass import Pass, is_read_on_other_data, registered_in, single_pass, why_registered
from vecsweep._engine.members.work import Work, WorkCounter
from vecsweep._types import Batch
from vecsweep.kernels._compiled import compiled_run_through
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
    passes = _Passes(learner, batch, seed, streams)
    recorder, counter = Recorder(), WorkCounter()
    reads, callers = Reads(_named(passes.learner)), reads_of_callers(passes.learner)
    with passes.watch.undisturbed(), compiled_run_through():
        with recorder, checkpoints_run_through() as checkpoints:
            first = single_pass(passes.learner, passes.parameters, batch, [counter, reads, callers])
        end = streams.mark("model", seed)
        registered = registered_in(learner, passes.learner)
        for name in filter(lambda name: f"{name}_orig" in registered, learner.parameters):  # as pruning names them
            raise taken_out(name)
        nodes = _autograd_nodes(first.loss)
        if nodes or not reads.higher_order:  # whose functions have gradients of what they refer to once compiled
            _check_depends_on(nodes, [*passes.learner.model.parameters(), *passes.parameters.values()])
        tell_of_callers(callers)
        tell_of_written(passes.learner, batch, first.batch)
        activation_bytes = _count_activations(nodes, passes.parameters.values())
        passes.rewind()
        for draw in recorder.draws:
            draw()
        repeated = streams.mark("model", seed)
        keeps = bool(passes.watch.changes())
        kept, changed, own = list[str](), frozenset[str](), frozenset[str]()
        if keeps or passes.learner.constants:
            elsewhere = passes.run_anew(passes.others)
            kept = _kept(passes, first) if keeps else []  # before anything is set back
            changed, own = _changed(passes, first.changed, elsewhere.changed)
        tell_of_shared(learner, passes.watch.shared(passes.watch.changes()))
    passes.rewind()
    set_up = why_registered(learner, registered, passes.others, batch) if registered else None
    passes.rewind()
    changed, own = changed.difference(registered), own.difference(registered)
    is_repeatable = is_same_but_for_numbers(repeated, end)
    twice = next(filter(changed.__contains__, passes.learner.constants), None) if checkpoints.has_any else None
    resized = next(
        (n for n in first.changed if n in changed and first.changed[n].shape != learner.constants[n].shape), ""
    )
    ragged, hooked = ragged_in(batch), _hooked(passes.learner)
    reasons = (
        set_up,
        f"the forward pass keeps something for the next in {kept[0]}" if kept else None,
        _parameters_moved(passes, first),
        f"`{reads.higher_order}`, whose functions PyTorch compiles before it calls them"
        if reads.higher_order
        else None,
        reads.obstacle,
        f"the forward pass gives the buffer {resized!r} another shape" if resized else None,
        f"a recomputed checkpoint may change {twice!r} twice" if twice else None,
        f"{ragged} in the batches; pad samples, and mask the loss" if ragged else None,
        None
        if is_repeatable
        else "the forward pass draws random numbers in a way that cannot be repeated for all members at once",
        f"gradients pass through a hook of {hooked}" if hooked else None,
    )
    return Probe(
        recorder.draws,
        changed,
        own,
        next(filter(None, reasons), None),
        bool(kept),
        activation_bytes,
        counter.work(passes.learner.model, sum(p.numel() for p in learner.parameters.values())),
        draws_numbers=not is_same_state(repeated, end),
    )


class _Passes:
    """Passes of a copy of a learner over one batch, all with the random numbers of the first.

    Attributes:
        learner: the copy, because what a loss does to parameters or attributes in place stays there.
        parameters: the weights that training starts from.
        watch: over what a pass keeps in Python.
        rewind: sets the random streams to where they stood.
    """

    def __init__(self, learner: Learner, batch: Batch, seed: int, streams: Streams) -> None:
        self.original = learner
        self.learner = learner.copy()
        self.batch = batch
        self.parameters: dict[str, Tensor] = {name: _clone(p) for name, p in learner.parameters.items()}
        self.watch = Watch.of_pass(self.learner.task, self.learner.model, has_numbers=True)
        self.rewind = partial(streams.rewind, "model", seed, streams.mark("model", seed))

    @cached_property
    def others(self) -> dict[str, Tensor]:
        """Weights that are none of the start's."""
        return {name: _clone(1.1 * p + 0.01) for name, p in self.parameters.items()}

    @property
    def turned(self) -> dict[str, Tensor]:
        """Weights of the same numbers at other places."""
        return {name: _clone(p.flatten().roll(1).view_as(p)) for name, p in self.others.items()}

    def run(self, weights: dict[str, Tensor], before: Mapping[str, Tensor] = MappingProxyType({})) -> Pass:
        """Run a pass, which finds in Python what the last one kept, and what is not trained as it was `before`."""
        self.rewind()
        with checkpoints_run_through():  # and autograd, because a loss may take gradients itself
            return single_pass(self.learner, weights, self.batch, before=before)

    def run_anew(self, weights: dict[str, Tensor], before: Mapping[str, Tensor] = MappingProxyType({})) -> Pass:
        """Run a pass which finds in Python what the first one found."""
        self.watch.restore()
        return self.run(weights, before)


def _kept(passes: _Passes, first: Pass) -> list[str]:
    """Name what a pass keeps in Python that the next one reads, or that counts passes; nothing, if it does no harm.

    Args:
        passes: of which the last was one with other weights.
        first: the first of them.
    """
    watch = passes.watch
    passes.rewind()
    after = Watch.of_pass(passes.learner.task, passes.learner.model, has_numbers=True)
    again = None  # where the pass fails, as for want of a backward pass between the two
    with suppress(Exception):
        again = passes.run(passes.parameters)
    counting, renewed = after.grown()
    names = watch.names(watch.changes())
    left = [] if again is not None and is_same(first.loss, again.loss) else [*names, *renewed]
    if not (counting or left or all(map(_is_of_recurrent, names))):
        is_read = is_read_on_other_data(passes.learner, passes.parameters, passes.batch, watch, passes.rewind)
        left = names if is_read else []
    # What recurrent layers list of their weights comes last: it is new in every pass, and not the reason.
    return sorted([*counting, *left], key=_is_of_recurrent)


def _changed(
    passes: _Passes, first: Mapping[str, Tensor], elsewhere: Mapping[str, Tensor]
) -> tuple[frozenset[str], frozenset[str]]:
    """Name what passes change that is not trained, and those among them that other weights change otherwise.

    Args:
        passes: to run more of, where these leave a doubt.
        first: what the first changes, and to what.
        elsewhere: the same of one with other weights, which alone change an average of weights that starts at them.
    """
    changed, own = frozenset(first).union(elsewhere), _differing(first, elsewhere)
    if any(first[name].is_floating_point() for name in first.keys() - own):
        # What counts choices, as of the codes of a codebook, differs only for weights that choose otherwise.
        with suppress(Exception):  # of weights that the model refuses
            own |= _differing(first, passes.run_anew(passes.turned).changed)
    if changed and dict(passes.learner.model.named_buffers()).keys() - changed:
        # What is copied from a buffer follows it a pass later, as in an average of a model with batch norm.
        starts = ((passes.parameters, first), (passes.others, elsewhere))
        later = [{**before, **passes.run_anew(weights, before).changed} for weights, before in starts]
        changed, own = changed.union(*later), own | _differing(*later)
    return changed, own


def _parameters_moved(passes: _Passes, first: Pass) -> str | None:
    """Say which parameter a pass puts another in the place of, or changes in place."""
    if first.replaced:
        return f"the forward pass puts a new parameter in the place of {first.replaced[0]!r}; a buffer may change"
    for name, p in passes.original.parameters.items():
        if not is_same(p, passes.parameters[name]):
            return f"the forward pass changes the parameter {name!r} in place"
    return None


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
