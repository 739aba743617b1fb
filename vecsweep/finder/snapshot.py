"""What a range test changes of the caller's, as it was before: weights, optimizer, loss scale, modes, gradients.

`state_dict()` returns references, and knows nothing of gradients, modes, buffers that are not persistent, or parameters
that are trained outside the model. What is here is copied, and put back into the caller's own tensors.
"""

import copy
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

Table = dict[str, Any]  # a module's parameters or buffers by name


class StateCacher:
    """Keep copies of states, in memory or in files.

    The files have no name, so that nobody else reads them, and the system removes them when they are no longer needed,
    even if the process is killed.

    Args:
        in_memory: whether copies are kept in memory.
        cache_dir: the folder of the files; None for the system's temporary one.

    Raises:
        ValueError: there is no such folder.

    Example:
        >>> cacher = StateCacher(in_memory=False)
        >>> cacher.store("weights", {"w": torch.ones(2)})
        >>> cacher.retrieve("weights")
        {'w': tensor([1., 1.])}
    """

    def __init__(self, in_memory: bool, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self.in_memory = in_memory
        self.cache_dir = tempfile.gettempdir() if cache_dir is None else cache_dir
        if not Path(self.cache_dir).is_dir():
            raise ValueError(
                f"Given `cache_dir` is not a valid directory. There is no folder {str(cache_dir)!r}; make it first, or "
                "leave it out for the system's temporary folder."
            )
        self._kept: dict[str, Any] = {}

    def store(self, key: str, state_dict: Any) -> None:
        """Keep a copy under a name, in place of an earlier one.

        Args:
            key: the name.
            state_dict: what is copied.

        Raises:
            OSError: a file cannot be written.
        """
        kept = copy.deepcopy(state_dict) if self.in_memory else self._write(state_dict)
        former, self._kept[key] = self._kept.get(key), kept
        if not self.in_memory and former is not None:
            former.close()

    def retrieve(self, key: str) -> Any:
        """Return a copy of what is kept under a name; writing into it changes nothing here.

        Args:
            key: the name.

        Raises:
            KeyError: there is nothing.
        """
        if key not in self._kept:
            raise KeyError(f"Target {key} was not cached. There is {sorted(self._kept)}.")
        if self.in_memory:
            return copy.deepcopy(self._kept[key])
        file = self._kept[key]
        file.seek(0)
        # States may hold any object of an optimizer's; nobody but this process can have written the file.
        return torch.load(file, weights_only=False)

    def _write(self, state: Any) -> IO[bytes]:
        try:
            file = tempfile.TemporaryFile(dir=self.cache_dir)  # noqa: SIM115 - it goes when it is closed
        except OSError as error:
            raise OSError(
                error.errno,
                f"`cache_dir` must be a folder that can be written to ({error.strerror}). Pass another one, or "
                "`memory_cache=True`",
                str(self.cache_dir),
            ) from error
        try:
            torch.save(state, file)
            file.flush()
        except BaseException:
            file.close()
            raise
        weakref.finalize(self, file.close)
        return file


class Snapshot:
    """The weights, the optimizer's state and the loss scale, as they are now.

    Args:
        modules: whose parameters and buffers.
        optimizer: whose state; parameters of it that are in no module are kept, too.
        grad_scaler: of mixed precision; None for none.
        cacher: keeps the copies.

    Raises:
        ValueError: a parameter has no shape yet.
    """

    def __init__(
        self, modules: Iterable[nn.Module], optimizer: Optimizer, grad_scaler: Any, cacher: StateCacher
    ) -> None:
        self._cacher = cacher
        self.modules = list(modules)
        self._tables: list[tuple[Table, Table]] = [
            (table, dict(table)) for module in self.modules for table in (module._parameters, module._buffers)
        ]
        self.tensors = self._list_tensors(optimizer)
        self._storages = [tensor.data for tensor in self.tensors]  # the same memory, also once `.to` has moved a tensor
        self._extra = [
            (module, copy.deepcopy(module.get_extra_state()))
            for module in self.modules
            if type(module).get_extra_state is not nn.Module.get_extra_state
        ]
        self._scaler = grad_scaler
        self._scaler_state = copy.deepcopy(vars(grad_scaler)) if grad_scaler is not None else None
        self._optimizer = _OwnState(optimizer) if _has_own_state(optimizer) else _State(optimizer)
        cacher.store("tensors", self._storages)
        cacher.store("optimizer", self._optimizer.content())

    def _list_tensors(self, optimizer: Optimizer) -> list[Tensor]:
        found = [tensor for _, own in self._tables for tensor in own.values() if tensor is not None]
        found += [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(is_lazy(tensor) for tensor in found):
            raise ValueError(
                "`model` must be initialised; a lazy parameter has no shape yet, and could not be put back. Run one "
                "batch through the model first, and build the optimizer after that."
            )
        return list({id(tensor): tensor for tensor in found}.values())

    @torch.no_grad()
    def restore(self) -> None:
        """Put all back, bit for bit; as often as one likes."""
        for table, own in self._tables:
            table.clear()
            table.update(own)
        kept = self._cacher.retrieve("tensors")
        for tensor, storage, value in zip(self.tensors, self._storages, kept, strict=True):
            tensor.data = storage
            if not _is_expanded(storage):  # such a tensor cannot have been written to
                storage.copy_(value)
        del kept
        for module, state in self._extra:
            module.set_extra_state(copy.deepcopy(state))
        if self._scaler_state is not None:
            vars(self._scaler).clear()
            vars(self._scaler).update(copy.deepcopy(self._scaler_state))
        self._optimizer.restore(self._cacher)


class _State:
    """What a torch.optim optimizer remembers: put back into its own containers, which others may hold, too."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._state = optimizer.state
        self._keys = list(optimizer.state)
        self._groups = optimizer.param_groups
        self._options = [(group, {name: _Option(name, own) for name, own in group.items()}) for group in self._groups]

    def content(self) -> list[Any]:
        return list(self._state.values())

    def restore(self, cacher: StateCacher) -> None:
        self._optimizer.state.clear()
        self._state.clear()
        self._state.update(zip(self._keys, cacher.retrieve("optimizer"), strict=True))
        self._groups[:] = [group for group, _ in self._options]
        for group, options in self._options:
            group.clear()
            group.update({name: option.restore() for name, option in options.items()})
        if self._optimizer.state is not self._state:
            self._optimizer.state = self._state
        if self._optimizer.param_groups is not self._groups:
            self._optimizer.param_groups = self._groups


class _Option:
    """One entry of a parameter group; a tensor stays the object that it is."""

    def __init__(self, name: str, value: Any) -> None:
        is_kept = name == "params" or isinstance(value, Tensor)
        self._object = value if is_kept else copy.deepcopy(value)
        self._value = value.detach().clone() if isinstance(value, Tensor) else None
        self._is_kept = is_kept

    def restore(self) -> Any:
        if self._value is not None:
            self._object.copy_(self._value)
        return self._object if self._is_kept else copy.deepcopy(self._object)


class _OwnState:
    """What an optimizer remembers that says so by a `state_dict` of its own."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = list(optimizer.param_groups)

    def content(self) -> Any:
        return self._optimizer.state_dict()

    def restore(self, cacher: StateCacher) -> None:
        self._optimizer.load_state_dict(cacher.retrieve("optimizer"))
        loaded = self._optimizer.param_groups
        for group, values in zip(self._groups, list(loaded), strict=True):
            if group is not values:
                group.clear()
                group.update(values)
        loaded[:] = self._groups


def _has_own_state(optimizer: Any) -> bool:
    return not isinstance(optimizer, Optimizer) or type(optimizer).state_dict is not Optimizer.state_dict


def _is_expanded(tensor: Tensor) -> bool:
    """Whether several elements lie at one place."""
    if tensor.layout is not torch.strided:
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


class Surroundings:
    """What a test changes besides: gradients, modes and `requires_grad`.

    Args:
        snapshot: whose modules and tensors.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._modes = [(module, module.training) for module in snapshot.modules]
        self._flags = [(tensor, tensor.requires_grad, tensor.grad) for tensor in snapshot.tensors if tensor.is_leaf]

    def drop_gradients(self) -> None:
        """Take the gradients away; the caller's are kept here."""
        for tensor, _, _ in self._flags:
            tensor.grad = None

    def restore(self) -> None:
        """Put all back, once the tensors are where they were."""
        for module, mode in self._modes:
            module.training = mode
        for tensor, requires_grad, grad in self._flags:
            tensor.requires_grad = requires_grad
            tensor.grad = grad
