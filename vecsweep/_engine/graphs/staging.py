"""Steps that are captured, several at a time: a counter on the device finds what each takes, and where its results go.

All that the host does for such a step is to launch its graph, once all inputs have been put in their places.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C import DisableTorchFunction as _DisableTorchFunction  # a default device is a mode, asked at each operator

from vecsweep._engine.caller.memory import is_out_of_memory
from vecsweep._engine.data.layouts import has_strides
from vecsweep._engine.graphs.capture import Captured, Pool, aside, copy_all_, once, place_for
from vecsweep._errors import warn_of_fallback

_MOST_BYTES = 64 * 2**20  # of inputs that are in place
_MOST_CAPTURES = 64  # of a function; states beyond that are stepped without

Function = Callable[..., list[Tensor]]


def num_ahead(inputs: Sequence[Tensor], most: int) -> int:
    """How many steps with such inputs are worth taking at once.

    Args:
        inputs: of one step.
        most: steps.
    """
    num_bytes = sum(tensor.nbytes for tensor in inputs if has_strides(tensor))  # others do not say
    return max(1, min(most, _MOST_BYTES // max(1, num_bytes)))


class Staged:
    """A captured function of a state and of inputs, called for several steps at once.

    Args:
        function: in place on the state; it has run before, inside `aside`.
        state: what it writes to; the replay works on this memory.
        inputs: what its other arguments look like.
        results: what it returns looks like.
        num_steps: at once, at most.
        pool: of memory.

    Attributes:
        num_steps: at once, at most.

    Raises:
        RuntimeError: it does what cannot be captured; nothing has happened.
    """

    def __init__(
        self,
        function: Function,
        state: Sequence[Tensor],
        inputs: Sequence[Tensor],
        results: Sequence[Tensor],
        num_steps: int,
        pool: Pool,
    ) -> None:
        self.num_steps = num_steps
        device = state[0].device
        with aside(device), torch.no_grad():
            self._rows = [once(x).new_zeros((num_steps, *once(x).shape)) for x in inputs]  # each [step, ...]
            # The operators of a trace depend on the layout of what they are given; a row that is read is dense.
            self._places = [None if x.is_contiguous() else place_for(x) for x in inputs]
            self._found = [torch.zeros((num_steps, *x.shape), dtype=x.dtype, device=device) for x in results]
            self._now = torch.zeros(1, dtype=torch.int64, device=device)
            self._steps = torch.arange(num_steps, device=device)
            self._read()  # what this sets up at first must not be captured
            self._note([found[0].clone() for found in self._found])
            self._now.zero_()
        self._rows_of = list(zip(*(rows.unbind() for rows in self._rows), strict=True))  # by step

        def step(*state: Tensor) -> list[Tensor]:
            self._note(function(*state, *self._read()))
            return []

        self._captured = Captured(step, state, [], pool)

    def __call__(self, steps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Compute the function once for each step, one after another.

        Args:
            steps: the inputs of each.

        Returns:
            What each gave, `[step, ...]`.
        """
        rows = [row for _, of_step in zip(steps, self._rows_of, strict=False) for row in of_step]
        copy_all_(rows, [once(x) for inputs in steps for x in inputs])
        self._now.zero_()
        for _ in steps:
            self._captured([])
        return [found[: len(steps)].clone() for found in self._found]

    def _read(self) -> list[Tensor]:
        """The inputs of the step that it is now."""
        inputs = []
        for rows, place in zip(self._rows, self._places, strict=True):
            row = rows.index_select(0, self._now).squeeze(0)
            if place is not None:
                once(place).copy_(row)
            inputs.append(row if place is None else place)
        return inputs

    def _note(self, results: Sequence[Tensor]) -> None:
        """Keep what the step that it is now gave, and go on to the next."""
        is_now = self._steps == self._now
        for found, result in zip(self._found, results, strict=True):
            # Not `index_copy_`, which under deterministic algorithms sorts its index, by a dozen kernels.
            torch.where(is_now.reshape(-1, *[1] * result.dim()), result, found, out=found)
        self._now.add_(1)


class Captures:
    """The graphs of a function, one for each place where a state lies.

    Args:
        num_state: how many of its first arguments are the state, `[member, *shape]` the first of them.
        num_steps: that are taken at once, at most.
        pool: of memory; None where nothing can be captured.
        is_divisible: whether it may be called for fewer members at a time where there is too little memory for all.
    """

    def __init__(self, num_state: int, num_steps: int, pool: Pool | None, *, is_divisible: bool) -> None:
        self._num_state = num_state
        self._is_divisible = is_divisible
        self._num_steps = num_steps
        self._pool = pool
        self._of_places: dict[tuple[int, ...], Staged] = {}
        self._ran: tuple[Function, list[Tensor]] | None = None  # a function that ran where it is captured; its results

    def __bool__(self) -> bool:
        return bool(self._of_places)

    def clear(self) -> None:
        """Give their memory back."""
        self._of_places.clear()

    def of(self, state: Sequence[Tensor]) -> Staged | None:
        """The graph for a state in this memory, if there is one."""
        return self._of_places.get(_place_of(state)) if self._of_places else None

    def num_at_once(self, state: Sequence[Tensor]) -> int:
        """How many of the next calls may be passed at once: none has to be captured, or is captured already."""
        staged = self.of(state)
        return staged.num_steps if staged is not None else self._num_steps if self._pool is None else 1

    def repeat(self, function: Function, state: Sequence[Tensor], inputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Compute a function for several steps, at most `num_at_once`; each result is `[step, ...]`."""
        if (staged := self.of(state)) is not None:
            return staged(inputs)
        with torch.no_grad(), _DisableTorchFunction():
            results = [function(*state, *of_step) for of_step in inputs]
        return [torch.stack(of_steps) for of_steps in zip(*results, strict=True)]

    def __call__(self, function: Function, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compute a function, by its graph if there is one: it is captured when it is called for the second time.

        Raises:
            OutOfMemoryError: there is too little to capture it for so many members.
        """
        state, inputs = tensors[: self._num_state], tensors[self._num_state :]
        if (staged := self.of(state) or self._capture(function, state, inputs)) is not None:
            return [result[0] for result in staged([inputs])]
        with torch.no_grad(), _DisableTorchFunction():
            if self._pool is None:
                return function(*tensors)
            with aside(tensors[0].device):
                results = function(*tensors)
        self._ran = function, [torch.empty_like(result, device="meta") for result in results]
        return results

    def _capture(self, function: Function, state: Sequence[Tensor], inputs: Sequence[Tensor]) -> Staged | None:
        """Capture a function, if it is due and can be."""
        ran, results = self._ran or (None, [])
        if self._pool is None or ran is not function or len(self._of_places) >= _MOST_CAPTURES:
            return None
        if not all(map(has_strides, inputs)):  # sparse ones have no place that others could be copied to
            return None
        try:
            staged = Staged(function, state, inputs, results, self._num_steps, self._pool)
        except RuntimeError as error:
            is_short = is_out_of_memory(error)
            if is_short and self._is_divisible and len(state[0]) > 1:
                raise
            pool, self._pool = self._pool, None
            if not pool.has_told:
                pool.has_told = True
                why = "there is not enough memory for it" if is_short else str(error).strip().partition("\n")[0]
                warn_of_fallback(
                    "What the members do on the GPU cannot be captured in a CUDA graph here, so that its operators are "
                    f"launched one by one, which is slower where they are small: {why}. The result is the same."
                )
            return None
        self._of_places[_place_of(state)] = staged
        return staged


def _place_of(state: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in state)
