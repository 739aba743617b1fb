"""The caller's loaders as a range test reads them: pairs (inputs, labels), endless or from the start each time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from vecsweep._types import Batch

Pair = tuple[Any, Any]


def pair_of(batch: Batch) -> Pair:
    """Return the first two parts of a batch that is a list or a tuple."""
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        kind = type(batch).__name__
        got = f"a {kind} of {len(batch)}" if isinstance(batch, list | tuple) else kind
        raise ValueError(
            f"Your batch type is not supported: {type(batch)}. A batch must be a list or tuple that begins with inputs "
            f"and labels; got {got}. Subclass `TrainDataLoaderIter` or `ValDataLoaderIter`, and override "
            "`inputs_labels_from_batch`."
        )
    inputs, labels, *_ = batch
    return inputs, labels


class DataLoaderIter:
    """Read a loader as pairs (inputs, labels).

    Subclass `TrainDataLoaderIter` or `ValDataLoaderIter`, and override `inputs_labels_from_batch`, for batches of
    another structure.

    Args:
        data_loader: a DataLoader, or anything that can be iterated over again and again.
    """

    def __init__(self, data_loader: Any) -> None:
        self.data_loader = data_loader
        self._iterator: Iterator[Batch] = iter(data_loader)

    @property
    def dataset(self) -> Any:
        """The loader's data set."""
        return self.data_loader.dataset

    def inputs_labels_from_batch(self, batch_data: Batch) -> Pair:
        """Return what the model is called with, and what the criterion compares its outputs to.

        Args:
            batch_data: as the loader yields it; here a list or tuple that begins with the two.

        Raises:
            ValueError: it is something else.
        """
        return pair_of(batch_data)

    def __iter__(self) -> "DataLoaderIter":
        return self

    def __next__(self) -> Pair:
        return self.inputs_labels_from_batch(next(self._iterator))


class TrainDataLoaderIter(DataLoaderIter):
    """Read a training loader, over and over.

    Args:
        data_loader: as in `DataLoaderIter`.
        auto_reset: whether to start over when the batches run out; otherwise the range test ends in StopIteration.

    Raises:
        ValueError: at the first batch, if there is none.

    Example:
        >>> batches = TrainDataLoaderIter([("a", 1), ("b", 2)])
        >>> [next(batches) for _ in range(3)]
        [('a', 1), ('b', 2), ('a', 1)]
    """

    def __init__(self, data_loader: Any, auto_reset: bool = True) -> None:
        super().__init__(data_loader)
        self.auto_reset = auto_reset

    def __next__(self) -> Pair:
        try:
            batch = next(self._iterator)
        except StopIteration:
            if not self.auto_reset:
                raise
            self._iterator = iter(self.data_loader)
            try:
                batch = next(self._iterator)
            except StopIteration:
                raise ValueError(
                    "`train_loader` must yield at least one batch each time it is read; got none. Look at the length "
                    "of the data set, at `drop_last` when a batch is larger than it, and for an iterator, which can "
                    "be read only once."
                ) from None
        return self.inputs_labels_from_batch(batch)


class ValDataLoaderIter(DataLoaderIter):
    """Read a validation loader, from the start in each `for` loop, as the loader itself would be.

    torch-lr-finder goes on in the middle where an earlier loop was left, and asks for the length of the loader.

    Args:
        data_loader: as in `DataLoaderIter`.
    """

    def __init__(self, data_loader: Any) -> None:
        super().__init__(data_loader)
        self._is_fresh = True  # nothing came from the iterator yet

    def __iter__(self) -> "ValDataLoaderIter":
        if not self._is_fresh:
            self._iterator = iter(self.data_loader)
            self._is_fresh = True
        return self

    def __next__(self) -> Pair:
        self._is_fresh = False
        return super().__next__()


def count_samples(labels: Any) -> int:
    """Say how many samples labels are of: their length, or, where they are several tensors of one length, theirs.

    Example:
        >>> import torch
        >>> count_samples(torch.zeros(5, 2)), count_samples({"a": torch.zeros(5), "b": torch.zeros(5)})
        (5, 5)
    """
    if isinstance(labels, Tensor | np.ndarray):
        return len(labels) if labels.ndim else 1
    parts = list(labels.values()) if isinstance(labels, dict) else labels
    if isinstance(parts, list | tuple) and parts and all(isinstance(part, Tensor) and part.ndim for part in parts):
        lengths = {len(part) for part in parts}
        if len(lengths) == 1:
            return lengths.pop()
    return len(labels) if hasattr(labels, "__len__") else 1
