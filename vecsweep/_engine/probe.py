"""Probe: what one kind of batch does to a model, seen by ordinary forward passes before anything is batched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vecsweep._engine.batches import copy_batch
from vecsweep._engine.copying import hooks_of
from vecsweep._engine.learner import Learner, is_same
from vecsweep._engine.rng import Streams, is_same_state
from vecsweep._types import Batch
from vecsweep.kernels.rules import Draw, Recorder


@dataclass(frozen=True, slots=True)
class Probe:
    """What training on a kind of batch does.

    Attributes:
        draws: what the model draws at random.
        changed_buffers: the names of the buffers that a pass changes.
        member_buffers: those among them that other weights change otherwise, so that each member needs its own.
        obstacle: why members cannot be batched, if a pass shows a reason.
        activation_bytes: what one member keeps for its backward pass, parameters and the batch aside.
    """

    draws: list[Draw]
    changed_buffers: frozenset[str]
    member_buffers: frozenset[str]
    obstacle: str | None
    activation_bytes: int


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
    learner = learner.copy()  # what a loss does to parameters or attributes in place stays there
    parameters: dict[str, Tensor] = dict(learner.parameters)
    versions = _versions(learner)
    start = streams.mark("model", seed)
    recorder = Recorder()
    with attributes_restored(learner.model) as attributes:
        with recorder:
            loss, changed = _forward(learner, parameters, batch)
        end = streams.mark("model", seed)
        nodes = _autograd_nodes(loss)
        _check_depends_on(nodes, learner)
        activation_bytes = _count_activations(nodes, learner)
        counters, others = attributes.changed()
        remembers = others
        if others and not counters:  # written at each pass, but is it read at the next?
            streams.rewind("model", seed, start)
            again, _ = _forward(learner, parameters, batch)
            remembers = [] if is_same(loss, again) else others
    streams.rewind("model", seed, start)
    for draw in recorder.draws:
        draw()
    is_repeatable = is_same_state(streams.mark("model", seed), end)
    member_buffers: frozenset[str] = frozenset()
    if changed:
        streams.rewind("model", seed, start)
        with torch.no_grad(), attributes_restored(learner.model):
            _, elsewhere = _forward(learner, {name: 1.1 * p + 0.01 for name, p in parameters.items()}, batch)
        member_buffers = frozenset(
            name for name, buffer in changed.items() if name not in elsewhere or not is_same(buffer, elsewhere[name])
        )
    streams.rewind("model", seed, start)
    obstacle = None
    if kept := [*counters, *remembers]:
        obstacle = f"the forward pass keeps something for the next in the Python attribute {kept[0]}"
    elif written := [name for name, version in _versions(learner).items() if version != versions.get(name, version)]:
        obstacle = f"the forward pass changes {written[0]} in place"
    elif not is_repeatable:
        obstacle = "the forward pass draws random numbers in a way that cannot be repeated for all members at once"
    elif hooked := _hooked(learner):
        obstacle = f"gradients pass through a hook of {hooked}"
    return Probe(recorder.draws, frozenset(changed), member_buffers, obstacle, activation_bytes)


def _autograd_nodes(loss: Tensor) -> list[Any]:
    """Everything that autograd would go through on its way back from the loss."""
    pending, seen = [loss.grad_fn], dict[Any, None]()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen[node] = None
            pending += [following for following, _ in node.next_functions]
    return list(seen)


def _count_activations(nodes: Sequence[Any], learner: Learner) -> int:
    """The bytes that autograd keeps for each member: what depends on its parameters, and they themselves aside."""
    own = {p.untyped_storage().data_ptr() for p in learner.model.parameters()}
    kept = {}
    for node in nodes:
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            if isinstance(value, Tensor) and value.requires_grad:
                kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(num_bytes for place, num_bytes in kept.items() if place not in own)


def _check_depends_on(nodes: Sequence[Any], learner: Learner) -> None:
    """Raise ValueError unless a loss depends on the learner's parameters, and on no others."""
    if not nodes:
        raise ValueError(
            "The loss must depend on the trained parameters; got one that does not require grad. Look for "
            "`.detach()`, `.item()` or `torch.no_grad()` between the model's output and the loss."
        )
    own = {id(p) for p in learner.model.parameters()}
    for node in nodes:
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter) and id(variable) not in own:
            raise ValueError(
                "The loss must depend on the parameters of the model it is given; got one of shape "
                f"{tuple(variable.shape)} that is not this model's. Members are copies: let the loss reach them "
                "through its `model` argument."
            )


def _versions(learner: Learner) -> dict[str, int]:
    """How often each parameter, and each tensor in a plain attribute, has been written to in place."""
    tensors: dict[str, Tensor] = {f"the parameter {name!r}": p for name, p in learner.model.named_parameters()}
    for path, module in learner.objective.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                tensors[f"the attribute `{path}.{key}`"] = value
    return {name: tensor._version for name, tensor in tensors.items()}


def _hooked(learner: Learner) -> str | None:
    """Name a part of the model that has a hook on gradients, which autograd outside vmap would not call."""
    for name, parameter in learner.model.named_parameters():
        if hooks_of(parameter):
            return f"the parameter {name!r}"
    for path, module in learner.model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            return f"the module {path!r}"
    return None


def _forward(learner: Learner, parameters: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Evaluate the loss on copies of the buffers; return also the buffers that this changed."""
    before = dict(learner.model.named_buffers())
    tensors = parameters | {name: buffer.clone() for name, buffer in before.items()}
    loss = learner.objective.evaluate(tensors, copy_batch(batch))
    return loss, {name: tensors[name] for name in before if not is_same(tensors[name], before[name])}


class Attributes:
    """The Python attributes of a model's modules, as they were."""

    _PLAIN = (bool, int, float, complex, str, bytes, type(None))
    _OWN = frozenset(vars(nn.Module()))  # parameters, buffers, hooks: PyTorch's own

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._before = {path: self._attributes(module) for path, module in self._modules.items()}
        self._contents = {
            (path, key): value.copy()
            for path, attributes in self._before.items()
            for key, value in attributes.items()
            if isinstance(value, list | dict | set)
        }

    def changed(self) -> tuple[list[str], list[str]]:
        """Name the attributes that are no longer the same: those that are plain values, and the others."""
        plain, others = list[str](), list[str]()
        for path, module in self._modules.items():
            for key, value in self._attributes(module).items():
                if not self._is_same(path, key, value):
                    is_plain = isinstance(value, self._PLAIN) and key in self._before[path]
                    (plain if is_plain else others).append(f"`{path}.{key}`" if path else f"`{key}`")
        return plain, others

    def restore(self) -> None:
        """Put everything back."""
        for path, module in self._modules.items():
            before = self._before[path]
            for key in self._attributes(module).keys() - before.keys():
                del module.__dict__[key]
            module.__dict__.update(before)
        for (path, key), content in self._contents.items():
            container = self._before[path][key]
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)

    def _is_same(self, path: str, key: str, value: Any) -> bool:
        if key not in self._before[path]:
            return False
        before = self._before[path][key]
        if value is not before:
            return isinstance(value, self._PLAIN) and isinstance(before, self._PLAIN) and value == before
        return (path, key) not in self._contents or _has_same_items(value, self._contents[path, key])

    def _attributes(self, module: nn.Module) -> dict[str, Any]:
        return {key: value for key, value in vars(module).items() if key not in self._OWN}


def _has_same_items(a: Any, b: Any) -> bool:
    """Whether two containers hold the same objects."""
    if isinstance(a, set):
        return bool(a == b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(a[key] is b[key] for key in a)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


@contextmanager
def attributes_restored(model: nn.Module) -> Iterator[Attributes]:
    """Set the attributes of a model's modules back in the end; buffers and parameters are not among them."""
    attributes = Attributes(model)
    try:
        yield attributes
    finally:
        attributes.restore()
