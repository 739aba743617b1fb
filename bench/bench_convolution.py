"""A convolution that each member has weights of its own for, forward and backward, in the ways that there are.

On a CPU the rule loops over members; elsewhere vmap makes one grouped convolution of them, whose backward pass is known
to be slow in cuDNN. On a GPU each way is a CUDA graph, as it is in a step.
"""

import functools
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from conftest import Compare
from torch import Tensor

from vecsweep._engine.graphs import capture

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
ROUNDS = 5
MAX_DEVIATION = 1e-2 if ON_GPU else 1e-4  # relative to the largest number; TF32 has as many bits as fp16

# From images [member, batch, channel, height, width] and weights [member, out, channel, 3, 3] to images.
Way = Callable[[Tensor, Tensor], Tensor]


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """One convolution with a group for each member: what vmap makes of it."""
    members = len(x)
    y = F.conv2d(x.transpose(0, 1).flatten(1, 2), weight.flatten(0, 1), padding=1, groups=members)
    return y.unflatten(1, (members, -1)).transpose(0, 1)


def grouped_last(x: Tensor, weight: Tensor) -> Tensor:
    """The same on images and weights whose channels are last."""
    members = len(x)
    images = x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    weights = weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return F.conv2d(images, weights, padding=1, groups=members).unflatten(1, (members, -1)).transpose(0, 1)


def looped(x: Tensor, weight: Tensor) -> Tensor:
    """One convolution after another."""
    return torch.stack([F.conv2d(own, w, padding=1) for own, w in zip(x, weight, strict=True)])


def looped_last(x: Tensor, weight: Tensor) -> Tensor:
    """The same on images and weights whose channels are last."""
    last = torch.channels_last
    pairs = zip(x, weight, strict=True)
    return torch.stack(
        [F.conv2d(a.contiguous(memory_format=last), w.to(memory_format=last), padding=1) for a, w in pairs]
    )


def side_by_side(x: Tensor, weight: Tensor) -> Tensor:
    """One convolution for each member, on streams that run at the same time; their backward passes do, too."""
    if not ON_GPU:
        return looped(x, weight)
    here, found = torch.cuda.current_stream(), []
    for i, (own, w) in enumerate(zip(x, weight, strict=True)):
        stream = _streams()[i % len(_streams())]
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            found.append(F.conv2d(own, w, padding=1))
    for stream in _streams():
        here.wait_stream(stream)
    return torch.stack(found)


def unfolded(x: Tensor, weight: Tensor) -> Tensor:
    """A batched product of the weights with what each position sees."""
    members, batch, _, height, width = x.shape
    seen = F.unfold(x.flatten(0, 1), 3, padding=1).unflatten(
        0, (members, batch)
    )  # [member, batch, channel * 9, position]
    y = weight.flatten(2).unsqueeze(1) @ seen
    return y.unflatten(-1, (height, width))


@functools.cache
def _streams() -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream() for _ in range(8)]


WAYS: dict[str, Way] = {
    "grouped": grouped,
    "grouped, channels last": grouped_last,
    "looped": looped,
    "looped, channels last": looped_last,
    "side by side": side_by_side,
    "unfolded": unfolded,
}


def _passes(way: Way, x: Tensor, weight: Tensor, grad: Tensor) -> Callable[[], Sequence[Tensor]]:
    """Forward and backward; on a GPU as a graph."""

    @torch.enable_grad()
    def run() -> Sequence[Tensor]:
        own, w = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = way(own, w)
        return (y.detach(), *torch.autograd.grad(y, (own, w), grad))

    if not ON_GPU:
        return run
    with capture.aside(x.device):
        run()
    graph = capture.Captured(lambda _: list(run()), [x], [], capture.Pool())
    return lambda: graph([])


@pytest.mark.parametrize("channels", [(3, 32), (64, 64), (128, 128)], ids=str)
@pytest.mark.parametrize("num_members", [8, 32])
def bench_convolution(num_members: int, channels: tuple[int, int], compare: Compare, tiny: bool) -> None:
    """Time each way on a layer of the VGG, whose members have 16 x 16 images of their own, 128 each."""
    torch.manual_seed(0)
    members, batch = (2, 2) if tiny or not ON_GPU else (num_members, 128)
    x = torch.randn(members, batch, channels[0], 16, 16, device=DEVICE)
    weight = 0.1 * torch.randn(members, channels[1], channels[0], 3, 3, device=DEVICE)
    grad = torch.randn(members, batch, channels[1], 16, 16, device=DEVICE)
    passes, failed = {}, {}
    for name, way in WAYS.items():
        try:
            passes[name] = _passes(way, x, weight, grad)
        except RuntimeError as error:  # a way that cannot be captured, or has no memory, leaves the others to be timed
            failed[name] = str(error).partition("\n")[0]
    expected = [result.clone() for result in passes["looped"]()]
    deviation = max(
        float((a - b).abs().max() / b.abs().max())
        for run in passes.values()
        for a, b in zip(run(), expected, strict=True)
    )
    compare(passes, rounds=ROUNDS, num_members=members, batch=batch, deviation=deviation, note=str(failed or ""))
    assert deviation < MAX_DEVIATION
