"""Problems by which suggestions of learning rates are judged: real data, small models, four optimizers, four courses.

A *problem* is a task with an optimizer, and the run that is asked about: its steps and its schedule. Six of the tasks
are `HELD_OUT`: nothing in the library was chosen by them, and the tables that are quoted are theirs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vecsweep as vs
from vecsweep.tasks.batches import RandomCrops, ShuffledBatches, batches_in_order
from vecsweep.tasks.data import digits_data, mnist_data, polynomial_data, shakespeare_data

Batches = list[tuple[Tensor, Tensor]]
Optimizer = Callable[..., torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
DEFAULT_LR = {"sgd": 0.01, "momentum": 0.01, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3}  # what everybody begins with
RUNS = {  # steps and schedule
    "short constant": (192, "constant"),
    "short cosine": (192, "cosine"),
    "long constant": (512, "constant"),
    "long one-cycle": (512, "one-cycle"),
    "brief constant": (96, "constant"),
    "brief one-cycle": (96, "one-cycle"),
    "briefest constant": (40, "constant"),
    "briefest cosine": (40, "cosine"),
}
HELD_OUT = ("digits_bn", "mnist_mlp", "mnist_frozen", "text_bag", "diabetes", "digits_noisy")


@dataclass(frozen=True)
class Problem:
    """What is trained, and the run whose learning rate is asked for."""

    task: str
    optimizer: str
    run: str

    @property
    def name(self) -> str:
        """All of it in words."""
        return f"{self.task}, {self.optimizer}, {self.run}"

    @property
    def num_steps(self) -> int:
        """Updates of the run."""
        return RUNS[self.run][0]

    @property
    def schedule(self) -> str:
        """By its name in `vecsweep.schedules`."""
        return RUNS[self.run][1]

    @property
    def is_brief(self) -> bool:
        """Whether the run is so short that a scan takes much of the budget; these have a table of their own."""
        return self.run.startswith("brief")

    @property
    def is_held_out(self) -> bool:
        """Whether nothing was chosen by it."""
        return self.task in HELD_OUT

    def make(self) -> vs.Task:
        """Make the task."""
        model, batches, loss_fn, val_batches = TASKS[self.task][0]()
        optimizer = OPTIMIZERS[self.optimizer]
        return vs.Task(model, batches, loss_fn, lambda params: optimizer(params), val_batches=val_batches)


Parts = tuple[Callable[[], nn.Module], object, Callable[[Tensor, Tensor], Tensor], Batches]


def _mlp(*widths: int, between: Callable[[int], list[nn.Module]] = lambda _: [nn.ReLU()]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (width, wider) in enumerate(pairwise(widths)):
        layers += [*(between(width) if i else []), nn.Linear(width, wider)]
    return nn.Sequential(*layers)


def _split(inputs: Tensor, targets: Tensor, num_train: int, batch_size: int) -> tuple[ShuffledBatches, Batches]:
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    train = ShuffledBatches(inputs[:num_train], targets[:num_train], batch_size)
    return train, batches_in_order(inputs[num_train:], targets[num_train:], 500)


def _digits(model: Callable[[], nn.Module], batch_size: int = 64) -> Parts:
    data = digits_data()
    train = ShuffledBatches(data.train_inputs, data.train_targets, batch_size)
    return model, train, F.cross_entropy, batches_in_order(data.test_inputs, data.test_targets, 360)


def digits_mlp() -> Parts:
    """MLP 64-64-64-10."""
    return _digits(lambda: _mlp(64, 64, 64, 10))


def digits_cnn() -> Parts:
    """Two convolutions with pools, and a linear layer."""
    return _digits(
        lambda: nn.Sequential(
            *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
        ),
        batch_size=32,
    )


def digits_bn() -> Parts:
    """MLP with batch norm."""
    return _digits(lambda: _mlp(64, 48, 48, 48, 10, between=lambda width: [nn.BatchNorm1d(width), nn.ReLU()]))


def digits_logistic() -> Parts:
    """Multinomial logistic regression."""
    return _digits(lambda: nn.Linear(64, 10), batch_size=32)


def digits_autoencoder() -> Parts:
    """64-32-8-32-64, squared error."""
    data = digits_data()
    train = ShuffledBatches(data.train_inputs, data.train_inputs, 64)
    held_out = batches_in_order(data.test_inputs, data.test_inputs, 360)
    return lambda: _mlp(64, 32, 8, 32, 64), train, F.mse_loss, held_out


def digits_noisy() -> Parts:
    """An MLP with dropout, a fifth of its training labels drawn at random."""
    data, generator = digits_data(), torch.Generator().manual_seed(1)
    is_wrong = torch.rand(len(data.train_targets), generator=generator) < 0.2
    drawn = torch.randint(10, data.train_targets.shape, generator=generator)
    train = ShuffledBatches(data.train_inputs, torch.where(is_wrong, drawn, data.train_targets), 32)
    held_out = batches_in_order(data.test_inputs, data.test_targets, 360)

    def model() -> nn.Module:
        return _mlp(64, 96, 96, 10, between=lambda _: [nn.ReLU(), nn.Dropout(0.2)])

    return model, train, F.cross_entropy, held_out


@cache
def _mnist() -> tuple[ShuffledBatches, Batches]:
    data = mnist_data()
    images, targets = data.train_inputs[:5000, :, ::2, ::2], data.train_targets[:5000]
    return _split(images.flatten(1).contiguous(), targets, 4000, 64)


def mnist_mlp() -> Parts:
    """MLP 196-96-10 on images of 14x14."""
    train, held_out = _mnist()
    return lambda: _mlp(196, 96, 10), train, F.cross_entropy, held_out


def mnist_deep() -> Parts:
    """Five layers with layer norms."""
    train, held_out = _mnist()
    model = partial(_mlp, 196, 48, 48, 48, 48, 10, between=lambda width: [nn.LayerNorm(width), nn.GELU()])
    return model, train, F.cross_entropy, held_out


def mnist_cnn() -> Parts:
    """Two strided convolutions with batch norm."""
    train, held_out = _mnist()

    def model() -> nn.Module:
        return nn.Sequential(
            *(nn.Unflatten(1, (1, 14, 14)), nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)),
        )

    return model, train, F.cross_entropy, held_out


def mnist_frozen() -> Parts:
    """A linear head on random features that are not trained."""
    train, held_out = _mnist()

    def model() -> nn.Module:
        features = nn.Linear(196, 256).requires_grad_(False)
        return nn.Sequential(features, nn.ReLU(), nn.Linear(256, 10))

    return model, train, F.cross_entropy, held_out


def _text(length: int, *, is_next_alone: bool) -> tuple[object, Batches]:
    data = shakespeare_data()
    symbols = data.train_symbols[:200_000]
    crops = data.test_symbols[:20_000].unfold(0, length + 1, 1)[:: 19_000 // 400][:400]
    if not is_next_alone:
        return RandomCrops(symbols, length, 16), batches_in_order(crops[:, :-1], crops[:, 1:], 100)
    known = symbols.unfold(0, length + 1, 1)[::5]
    return (
        ShuffledBatches(known[:, :-1].contiguous(), known[:, -1].contiguous(), 64),
        batches_in_order(crops[:, :-1].contiguous(), crops[:, -1].contiguous(), 400),
    )


class _GPT(nn.Module):
    """One block of a decoder, of width 32."""

    def __init__(self, length: int, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(65, width), nn.Embedding(length, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, 65)

    def forward(self, symbols: Tensor) -> Tensor:
        """From `[batch, position]` to logits `[batch, symbol, position]`."""
        stream = self.tokens(symbols) + self.positions(torch.arange(symbols.shape[1]))
        parts = self.qkv(self.norm1(stream)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream = stream + self.out(seen.transpose(1, 2).flatten(2))
        stream = stream + self.feed(self.norm2(stream))
        return self.head(self.norm3(stream)).transpose(1, 2)


def text_gpt() -> Parts:
    """Next characters by a small GPT."""
    train, held_out = _text(24, is_next_alone=False)
    return lambda: _GPT(24), train, F.cross_entropy, held_out


class _GRU(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens, self.cell = nn.Embedding(65, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 65)

    def forward(self, symbols: Tensor) -> Tensor:
        """From `[batch, position]` to logits `[batch, symbol, position]`."""
        return self.head(self.cell(self.tokens(symbols))[0]).transpose(1, 2)


def text_gru() -> Parts:
    """Next characters by a GRU."""
    train, held_out = _text(16, is_next_alone=False)
    return lambda: _GRU(), train, F.cross_entropy, held_out


def text_bag() -> Parts:
    """The next character from a bag of eight."""
    train, held_out = _text(8, is_next_alone=True)
    return lambda: nn.Sequential(nn.EmbeddingBag(65, 64), nn.Linear(64, 65)), train, F.cross_entropy, held_out


def text_mlp() -> Parts:
    """The next character from the embeddings of eight, by a tanh layer."""
    train, held_out = _text(8, is_next_alone=True)

    def model() -> nn.Module:
        return nn.Sequential(nn.Embedding(65, 16), nn.Flatten(), nn.Linear(128, 96), nn.Tanh(), nn.Linear(96, 65))

    return model, train, F.cross_entropy, held_out


def polynomial() -> Parts:
    """A polynomial in five features, by tanh units with batch norm."""
    data = polynomial_data()
    train = ShuffledBatches(data.train_inputs, data.train_targets, 50)
    held_out = batches_in_order(data.test_inputs, data.test_targets, 300)
    model = partial(_mlp, 5, 32, 32, 1, between=lambda width: [nn.BatchNorm1d(width), nn.Tanh()])
    return model, train, F.mse_loss, held_out


def _table(name: str) -> tuple[Tensor, Tensor]:
    from sklearn import datasets

    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    inputs = torch.tensor(inputs, dtype=torch.float32)
    return (inputs - inputs.mean(0)) / inputs.std(0), torch.tensor(targets)


def diabetes() -> Parts:
    """The progress of diabetes, standardised, by an MLP."""
    inputs, targets = _table("diabetes")
    values = ((targets - targets.mean()) / targets.std()).float()[:, None]
    train, held_out = _split(inputs, values, 342, 32)
    return lambda: _mlp(10, 64, 32, 1), train, F.smooth_l1_loss, held_out


def cancer() -> Parts:
    """Breast cancer, by an MLP with dropout."""
    train, held_out = _split(*_table("breast_cancer"), 400, 32)
    model = partial(_mlp, 30, 32, 32, 2, between=lambda _: [nn.ReLU(), nn.Dropout(0.1)])
    return model, train, F.cross_entropy, held_out


def wine() -> Parts:
    """Wines, by a deep tanh net."""
    train, held_out = _split(*_table("wine"), 130, 16)
    return partial(_mlp, 13, 24, 24, 24, 3, between=lambda _: [nn.Tanh()]), train, F.cross_entropy, held_out


TASKS: dict[str, tuple[Callable[[], Parts], tuple[str, str]]] = {  # with the optimizers of each
    "digits_mlp": (digits_mlp, ("momentum", "adamw")),
    "digits_cnn": (digits_cnn, ("momentum", "adam")),
    "digits_bn": (digits_bn, ("sgd", "rmsprop")),
    "digits_logistic": (digits_logistic, ("sgd", "adam")),
    "digits_autoencoder": (digits_autoencoder, ("momentum", "adam")),
    "digits_noisy": (digits_noisy, ("momentum", "adamw")),
    "mnist_mlp": (mnist_mlp, ("momentum", "adamw")),
    "mnist_deep": (mnist_deep, ("sgd", "adam")),
    "mnist_cnn": (mnist_cnn, ("momentum", "rmsprop")),
    "mnist_frozen": (mnist_frozen, ("sgd", "adam")),
    "text_gpt": (text_gpt, ("momentum", "adamw")),
    "text_gru": (text_gru, ("adam", "rmsprop")),
    "text_bag": (text_bag, ("sgd", "adam")),
    "text_mlp": (text_mlp, ("momentum", "adamw")),
    "polynomial": (polynomial, ("sgd", "adam")),
    "diabetes": (diabetes, ("momentum", "adam")),
    "cancer": (cancer, ("sgd", "adamw")),
    "wine": (wine, ("momentum", "rmsprop")),
}


def problems() -> Iterator[Problem]:
    """Each task with its optimizers, each optimizer with runs of four lengths, in turn constant and annealed."""
    odd = ("short constant", "long one-cycle", "brief constant", "briefest cosine")
    even = ("short cosine", "long constant", "brief one-cycle", "briefest constant")
    for number, (task, (_, optimizers)) in enumerate(TASKS.items()):
        for place, optimizer in enumerate(optimizers):
            for run in odd if (number + place) % 2 else even:
                yield Problem(task, optimizer, run)
