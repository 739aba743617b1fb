"""Batches of data that lie in memory: cut from whole tensors, which is far quicker than collating single samples.

What is random comes from PyTorch's global generator, which a sweep seeds for each seed.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


class ShuffledBatches:
    """Batches of tensors that lie in memory, in a new order on each pass.

    Args:
        inputs: `[sample, ...]`.
        targets: `[sample, ...]`.
        batch_size: samples in each batch.
        transform: what the inputs of each batch go through, such as `crop_and_flip`; None leaves them as they are.
        drops_last: whether a last, smaller batch of a pass is left out.

    Example:
        >>> import torch
        >>> from vecsweep.tasks import ShuffledBatches
        >>> batches = ShuffledBatches(torch.zeros(10, 3), torch.zeros(10), batch_size=4)
        >>> [inputs.shape for inputs, targets in batches]
        [torch.Size([4, 3]), torch.Size([4, 3])]
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        drops_last: bool = True,
    ) -> None:
        self.inputs = inputs
        self.targets = targets
        self.batch_size = batch_size
        self.transform = transform
        self.drops_last = drops_last

    def __len__(self) -> int:
        num_whole, rest = divmod(len(self.inputs), self.batch_size)
        return num_whole + (rest > 0 and not self.drops_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.inputs))
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            inputs = self.inputs[rows]
            yield inputs if self.transform is None else self.transform(inputs), self.targets[rows]


class RandomCrops:
    """Batches of crops of one long text, each at a random place; the targets are the symbols that follow.

    A pass has as many symbols as the text, so that it may be called an epoch.

    Args:
        symbols: `[position]`.
        length: symbols in each crop.
        batch_size: crops in each batch.

    Example:
        >>> [(inputs, targets)] = RandomCrops(torch.arange(9), length=4, batch_size=2)
        >>> inputs.shape, (targets - inputs).tolist()
        (torch.Size([2, 4]), [[1, 1, 1, 1], [1, 1, 1, 1]])
    """

    def __init__(self, symbols: Tensor, length: int, batch_size: int) -> None:
        self.symbols = symbols
        self.length = length
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.symbols) // (self.length * self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        crops = self.symbols.unfold(0, self.length + 1, 1)  # [start, position], a view
        for _ in range(len(self)):
            chosen = crops[torch.randint(len(crops), (self.batch_size,))]
            yield chosen[:, :-1], chosen[:, 1:]


def batches_in_order(inputs: Tensor, targets: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Cut samples into batches, in their order, as validation wants them; the last may be smaller."""
    return list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))


def crops_in_order(symbols: Tensor, length: int, batch_size: int, num_batches: int) -> list[tuple[Tensor, Tensor]]:
    """Take crops of one long text at places that are spread evenly over it, the same each time."""
    crops = symbols.unfold(0, length + 1, 1)
    chosen = crops[torch.linspace(0, len(crops) - 1, num_batches * batch_size).long()]
    return batches_in_order(chosen[:, :-1], chosen[:, 1:], batch_size)


def crop_and_flip(
    images: Tensor,  # [sample, channel, height, width]
    margin: int = 4,
) -> Tensor:
    """Move each image by up to `margin` pixels either way, and mirror every other one, at random.

    What comes in at an edge is 0, which in normalized images is the mean colour.

    Reference:
        He, Zhang, Ren and Sun 2016, https://arxiv.org/abs/1512.03385, section 4.2
    """
    num_samples, _, height, width = images.shape
    top, left = torch.randint(2 * margin + 1, (2, num_samples))
    is_flipped = torch.rand(num_samples) < 0.5
    padded = F.pad(images, (margin, margin, margin, margin))
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # [sample, channel, top, left, height, width], a view
    chosen = crops[torch.arange(num_samples), :, top, left]
    return torch.where(is_flipped[:, None, None, None], chosen.flip(3), chosen)
