"""What the benchmarks train: one function for each workload, that returns a task on data of the right shape.

The data are random, because only their shapes matter to the time of a step; what is learned from real data is shown by
`make demo` and the tests.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import vecsweep as vs
from vecsweep._engine.windows import _WINDOW_STEPS as WINDOW_STEPS


@dataclass(frozen=True)
class Workload:
    """A task and how it is measured.

    Attributes:
        make: builds the task.
        num_members: how many copies are trained.
        target: the ratio to the sequential loop that is aimed at; words where it is no number.
        window_steps: steps between two looks at the losses; fewer than a sweep's own where a step takes seconds.
        gpu: how many copies are trained on a GPU, and the ratio that is aimed at there, if one is.
    """

    make: Callable[[], vs.Task]
    num_members: int
    target: float | str
    window_steps: int = WINDOW_STEPS
    gpu: tuple[int, float | None] = (32, None)

    def tiny(self) -> "Workload":
        """The same with next to nothing to compute: two copies, and two samples of the first batches."""

        def make() -> vs.Task:
            task = self.make()
            return replace(task, batches=_First(task.batches))

        return Workload(make, 2, self.target, window_steps=2, gpu=(2, None))


@dataclass(frozen=True)
class _First:
    """The first batches of a source, cut short."""

    source: Iterable[tuple[Tensor, ...]]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for batch in itertools.islice(self.source, 2):
            yield tuple(leaf[:2] for leaf in batch)


class CharGPT(nn.Module):
    """A decoder of two layers on characters: width 64, four heads, 32 positions."""

    def __init__(self, num_symbols: int = 65, width: int = 64, length: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(num_symbols, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_symbols)

    def forward(self, x: Tensor) -> Tensor:
        """From `[batch, position]` to logits `[batch, symbol, position]`."""
        y = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y)).transpose(1, 2)


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each after a norm."""

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """From and to `[batch, position, width]`."""
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.feed(self.norm2(x))


class LSTMClassifier(nn.Module):
    """An LSTM of width 64 whose last output is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From `[batch, time, 64]` to `[batch, class]`."""
        return self.head(self.lstm(x)[0][:, -1])


class AugmentedImages(Dataset):
    """Images of 3x32x32, as bytes; each is padded by 4, cropped, flipped or not, and normalised when it is taken."""

    def __init__(self, num_images: int = 1024) -> None:
        self.images = torch.randint(256, (num_images, 3, 32, 32), dtype=torch.uint8)
        self.labels = torch.randint(10, (num_images,))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        top, left, is_flipped = (int(torch.randint(n, ())) for n in (9, 9, 2))
        image = F.pad(self.images[i], (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        image = image.flip(-1) if is_flipped else image
        return (image.float() / 255 - 0.45) / 0.25, self.labels[i]


def _task(model: nn.Module, inputs: Callable[[], Tensor], targets: Callable[[], Tensor], optimizer: object) -> vs.Task:
    batches = [(inputs(), targets()) for _ in range(8)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=optimizer)


def _momentum(params: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9)


def _adamw(params: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)


def digits_mlp() -> vs.Task:
    """MLP 64-64-64-10, batch 64."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return _task(model, lambda: torch.rand(64, 64), lambda: torch.randint(10, (64,)), _momentum)


def mnist_mlp(optimizer: object = _momentum) -> vs.Task:
    """MLP 784-500-256-10, batch 64."""
    model = nn.Sequential(nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 256), nn.ReLU(), nn.Linear(256, 10))
    return _task(model, lambda: torch.rand(64, 784), lambda: torch.randint(10, (64,)), optimizer)


def cnn() -> vs.Task:
    """Convolutions 1-16-32 of 3x3 with a pool after each, one linear layer, 28x28, batch 64."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 10)),
    )
    return _task(model, lambda: torch.rand(64, 1, 28, 28), lambda: torch.randint(10, (64,)), _momentum)


def frozen_body() -> vs.Task:
    """A frozen convolutional body and a head of ten outputs, 28x28, batch 64."""
    body = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    ).requires_grad_(False)
    model = nn.Sequential(body, nn.Linear(64 * 49, 10))
    return _task(
        model,
        lambda: torch.rand(64, 1, 28, 28),
        lambda: torch.randint(10, (64,)),
        lambda params: _momentum([p for p in params if p.requires_grad]),
    )


def char_gpt() -> vs.Task:
    """CharGPT, 8 sequences of 32 characters."""
    return _task(CharGPT(), lambda: torch.randint(65, (8, 32)), lambda: torch.randint(65, (8, 32)), _adamw)


def lstm() -> vs.Task:
    """LSTM of width 64, 32 sequences of 20."""
    return _task(LSTMClassifier(), lambda: torch.randn(32, 20, 64), lambda: torch.randint(10, (32,)), _momentum)


def vgg() -> vs.Task:
    """VGG of six 3x3 convolutions and two linear layers on CIFAR's 3x32x32, batch 128."""
    model = _vgg_model()
    return _task(model, lambda: torch.randn(128, 3, 32, 32), lambda: torch.randint(10, (128,)), _momentum)


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norms, beside a short cut."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(width, wider, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()),
            *(nn.Conv2d(wider, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider)),
        )
        is_same = width == wider and stride == 1
        across = (nn.Conv2d(width, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))
        self.short_cut = nn.Identity() if is_same else nn.Sequential(*across)

    def forward(self, x: Tensor) -> Tensor:
        """From and to `[batch, channel, height, width]`."""
        return F.relu(self.body(x) + self.short_cut(x))


def resnet18() -> vs.Task:
    """ResNet-18 for CIFAR's 3x32x32, 11 M parameters, batch 128."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for i, wider in enumerate((64, 64, 128, 128, 256, 256, 512, 512)):
        layers.append(Residual(width, wider, stride=2 if i in (2, 4, 6) else 1))
        width = wider
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return _task(model, lambda: torch.randn(128, 3, 32, 32), lambda: torch.randint(10, (128,)), _momentum)


def vgg_augmented() -> vs.Task:
    """The same, its batches from a DataLoader that augments image by image."""
    loader = DataLoader(AugmentedImages(), batch_size=128, shuffle=True)
    return vs.Task(_vgg_model(), loader, F.cross_entropy, optimizer=_momentum)


def _vgg_model() -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for i, wider in enumerate((32, 64, 64, 128, 128, 128), 1):
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3, 6) else []
        width = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10))


WORKLOADS = {
    "digits-mlp": Workload(digits_mlp, 64, 11.0, gpu=(256, 100.0)),
    "mnist-mlp": Workload(mnist_mlp, 32, 1.4, gpu=(256, 100.0)),
    "mnist-mlp-adamw": Workload(lambda: mnist_mlp(_adamw), 32, 1.7),
    "cnn": Workload(cnn, 16, 1.3),
    "char-gpt": Workload(char_gpt, 16, 1.8, gpu=(32, 10.0)),
    "lstm": Workload(lstm, 16, 1.2),
    "frozen-body": Workload(frozen_body, 32, 20.0),
    "vgg": Workload(vgg, 8, 1.15, window_steps=2, gpu=(32, 5.0)),
    "resnet18": Workload(resnet18, 4, "as fast as one after another", window_steps=2, gpu=(32, 5.0)),
    "vgg-augmented": Workload(vgg_augmented, 8, "clearly above vgg", window_steps=2),
}
