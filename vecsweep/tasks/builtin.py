"""The built-in tasks: one function each, that loads its data and says what is trained on them, and how.

A model is given as a function that builds it, so that initial weights differ between seeds.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vecsweep.task import Task
from vecsweep.tasks.batches import RandomCrops, ShuffledBatches, batches_in_order, crop_and_flip, crops_in_order
from vecsweep.tasks.data import (
    SplitData,
    cifar10_data,
    digits_data,
    fashion_mnist_data,
    mnist_data,
    polynomial_data,
    shakespeare_data,
)
from vecsweep.tasks.models import CharGPT, digits_cnn_model, mlp, tanh_net, vgg


def accuracy(
    outputs: Tensor,  # [batch, class, ...]
    targets: Tensor,  # [batch, ...]
) -> Tensor:
    """Compute the share of the targets that have the largest output."""
    return (outputs.argmax(dim=1) == targets).float().mean()


def digits() -> Task:
    """Make the task of telling handwritten digits of 8x8 apart.

    An MLP 64-64-64-10 with ReLU; cross-entropy; SGD with momentum 0.9; batches of 64 from the 1,437 images of
    `digits_data` to train on; validated on the 360 others.

    Returns:
        The task; a batch is images `[64, 64]` and classes `[64]`.

    Raises:
        ImportError: scikit-learn, which holds the images, is not installed.
    """
    data = digits_data()
    return Task(
        model=lambda: mlp(64, 64, 64, 10),
        batches=ShuffledBatches(data.train_inputs, data.train_targets, batch_size=64),
        loss_fn=F.cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        val_batches=batches_in_order(data.test_inputs, data.test_targets, batch_size=360),
        metrics={"accuracy": accuracy},
    )


def digits_cnn() -> Task:
    """Make the task of telling handwritten digits of 8x8 apart by a convolutional network.

    3x3 convolutions of 16 and 32 channels, each with ReLU and a 2x2 max pool, and a linear layer; all else as in
    `digits`.

    Returns:
        The task; a batch is images `[64, 64]`, which the model takes for `[64, 1, 8, 8]`, and classes `[64]`.

    Raises:
        ImportError: scikit-learn, which holds the images, is not installed.
    """
    return replace(digits(), model=digits_cnn_model)


def mnist() -> Task:
    """Make the task of telling handwritten digits of 28x28 apart.

    An MLP 784-500-256-10 with ReLU; cross-entropy; Adam; batches of 64 from the 60,000 images to train on;
    validated on the 10,000 others.

    Returns:
        The task; a batch is images `[64, 784]` and classes `[64]`.

    Raises:
        ValueError: the images have not been fetched.
    """
    return _classify_by_mlp(mnist_data())


def fashion_mnist() -> Task:
    """Make the task of telling pieces of clothing apart; all but the images is as in `mnist`.

    Returns:
        The task; a batch is images `[64, 784]` and classes `[64]`.

    Raises:
        ValueError: the images have not been fetched.
    """
    return _classify_by_mlp(fashion_mnist_data())


def fashion_mnist_sgd() -> Task:
    """Make the task of `fashion_mnist` with SGD with momentum 0.9 in place of Adam.

    Returns:
        The task; a batch is images `[64, 784]` and classes `[64]`.

    Raises:
        ValueError: the images have not been fetched.
    """
    return replace(fashion_mnist(), optimizer=lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9))


def cifar10(*, num_train: int | None = None, num_test: int | None = None) -> Task:
    """Make the task of telling ten kinds of things on photographs apart.

    A VGG of six 3x3 convolutions and two linear layers, without biases; cross-entropy; SGD with momentum 0.9 and
    weight decay 5e-4; batches of 128 from the 50,000 images to train on, each moved by up to 4 pixels and mirrored or
    not (`crop_and_flip`); validated on the 10,000 others, as they are.

    Args:
        num_train: train on so many images, at least a batch, the first of an order that is random and always the same;
            None takes all.
        num_test: validate on so many.

    Returns:
        The task; a batch is images `[128, 3, 32, 32]` and classes `[128]`.

    Raises:
        ValueError: the images have not been fetched, or are not that many.
    """
    data, batch_size = cifar10_data(), 128
    train = _take("num_train", num_train, batch_size, data.train_inputs, data.train_targets)
    test = _take("num_test", num_test, 1, data.test_inputs, data.test_targets)
    return Task(
        model=vgg,
        batches=ShuffledBatches(*train, batch_size, transform=crop_and_flip),
        loss_fn=F.cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=5e-4),
        val_batches=batches_in_order(*test, batch_size=500),
        metrics={"accuracy": accuracy},
    )


def shakespeare() -> Task:
    """Make the task of foretelling the next character in Shakespeare's plays.

    A GPT of two layers of width 64, with four heads and 64 positions; cross-entropy; AdamW; batches of 32 crops from
    random places of the first 900,000 characters or so; validated on 256 crops of the last tenth, always the same.

    Returns:
        The task; a batch is symbols `[32, 64]` and the ones that follow each, `[32, 64]`.

    Raises:
        ValueError: the text has not been fetched.
    """
    data, length = shakespeare_data(), 64
    return Task(
        model=lambda: CharGPT(len(data.alphabet), length),
        batches=RandomCrops(data.train_symbols, length, batch_size=32),
        loss_fn=F.cross_entropy,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
        val_batches=crops_in_order(data.test_symbols, length, batch_size=64, num_batches=4),
        metrics={"accuracy": accuracy},
    )


def tanh_regression() -> Task:
    """Make the task of learning a polynomial of degree 2 in five features.

    Two layers of 32 tanh units with batch norm before it; mean squared error; Adam; batches of 50 from the 700 samples
    of `polynomial_data` to train on; validated on the 300 others.

    Returns:
        The task; a batch is features `[50, 5]` and values `[50, 1]`.

    Example:
        >>> from vecsweep.tasks import tanh_regression
        >>> inputs, targets = next(iter(tanh_regression().batches))
        >>> inputs.shape, targets.shape
        (torch.Size([50, 5]), torch.Size([50, 1]))
    """
    data = polynomial_data()
    return Task(
        model=lambda: tanh_net(num_features=5, width=32),
        batches=ShuffledBatches(data.train_inputs, data.train_targets, batch_size=50),
        loss_fn=F.mse_loss,
        optimizer=lambda params: torch.optim.Adam(params, lr=0.01),
        val_batches=batches_in_order(data.test_inputs, data.test_targets, batch_size=300),
        metrics={"mse": F.mse_loss},
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "digits-cnn": digits_cnn,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "shakespeare": shakespeare,
    "tanh-regression": tanh_regression,
}


def _classify_by_mlp(data: SplitData) -> Task:
    """Make the task of telling images of 28x28 apart."""
    return Task(
        model=lambda: mlp(784, 500, 256, 10),
        batches=ShuffledBatches(data.train_inputs.flatten(1), data.train_targets, batch_size=64),
        loss_fn=F.cross_entropy,
        optimizer=lambda params: torch.optim.Adam(params, lr=1e-3),
        val_batches=batches_in_order(data.test_inputs.flatten(1), data.test_targets, batch_size=1000),
        metrics={"accuracy": accuracy},
    )


def _take(name: str, num_samples: int | None, at_least: int, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Take the first samples of an order that is random and always the same."""
    if num_samples is None:
        return inputs, targets
    if not at_least <= num_samples <= len(inputs):
        raise ValueError(f"`{name}` must be from {at_least} to {len(inputs)}; got {num_samples}. None takes all.")
    rows = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:num_samples]
    return inputs[rows], targets[rows]
