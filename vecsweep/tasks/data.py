"""The data sets of the built-in tasks, as tensors: read once in a process, split the same way each time.

The digits come with scikit-learn, the polynomial is made here, and all others must be fetched first; see `fetching`.
Images are in NCHW, less the mean of all training pixels and divided by their standard deviation, of each colour.
"""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vecsweep.tasks.fetching import read

_NUM_TRAINED_DIGITS = 1437  # four fifths of the 1,797
_SHARE_TRAINED_TEXT = 0.9
_CIFAR10_MEAN = np.array([[0.4914], [0.4822], [0.4465]], np.float32)  # [channel, 1], of pixels in [0, 1]
_CIFAR10_STD = np.array([[0.2470], [0.2435], [0.2616]], np.float32)


class SplitData(NamedTuple):
    """Samples, in a part to train on and a part held out.

    Attributes:
        train_inputs: `[sample, ...]`.
        train_targets: `[sample, ...]`.
        test_inputs: `[test sample, ...]`.
        test_targets: `[test sample, ...]`.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


class TextData(NamedTuple):
    """A text, in a part to train on and a part held out.

    Attributes:
        train_symbols: `[position]`, each character by its place in the alphabet.
        test_symbols: `[position]`, of the text that follows.
        alphabet: all characters of the text, sorted.
    """

    train_symbols: Tensor
    test_symbols: Tensor
    alphabet: str


def digits_data() -> SplitData:
    """Load the 1,797 handwritten digits of scikit-learn: 1,437 to train on, 360 held out.

    Inputs are `[sample, 64]`, the pixels of 8x8 images, in [0, 1]; targets are the digits 0 to 9.

    Raises:
        ImportError: scikit-learn, which holds the images, is not installed.

    Reference:
        Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The task 'digits' needs scikit-learn, which holds its images. Run: pip install 'vecsweep[demo]'"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.as_tensor(pixels, dtype=torch.float32) / 16  # they are whole numbers from 0 to 16
    targets = torch.as_tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = order[:_NUM_TRAINED_DIGITS], order[_NUM_TRAINED_DIGITS:]
    return SplitData(inputs[train], targets[train], inputs[test], targets[test])


@cache
def mnist_data() -> SplitData:
    """Load the handwritten digits of MNIST: 60,000 to train on, 10,000 held out, `[sample, 1, 28, 28]`.

    Raises:
        ValueError: they have not been fetched.

    Reference:
        LeCun, Bottou, Bengio and Haffner 1998, Gradient-based learning applied to document recognition.
    """
    return _read_idx_images("mnist", mean=0.13066, std=0.30811)


@cache
def fashion_mnist_data() -> SplitData:
    """Load the pieces of clothing of Fashion-MNIST: 60,000 to train on, 10,000 held out, `[sample, 1, 28, 28]`.

    Raises:
        ValueError: they have not been fetched.

    Reference:
        Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747
    """
    return _read_idx_images("fashion-mnist", mean=0.28604, std=0.35302)


@cache
def cifar10_data() -> SplitData:
    """Load the photographs of CIFAR-10: 50,000 to train on, 10,000 held out, `[sample, 3, 32, 32]`.

    Raises:
        ValueError: they have not been fetched.

    Reference:
        Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    train = _read_png_images([f"data_batch_{i}.png" for i in range(1, 6)])
    test = _read_png_images(["test_batch.png"])
    return SplitData(train, _read_json_labels("train_lables.json"), test, _read_json_labels("test_lables.json"))


@cache
def shakespeare_data() -> TextData:
    """Load a million characters of Shakespeare's plays, as one text: nine tenths to train on, the end held out.

    Raises:
        ValueError: they have not been fetched.

    Reference:
        Karpathy 2015, https://karpathy.github.io/2015/05/21/rnn-effectiveness
    """
    text = read("shakespeare", "input.txt").decode()
    alphabet = "".join(sorted(set(text)))
    positions = {symbol: position for position, symbol in enumerate(alphabet)}
    symbols = torch.tensor([positions[symbol] for symbol in text])
    num_trained = int(_SHARE_TRAINED_TEXT * len(symbols))
    return TextData(symbols[:num_trained], symbols[num_trained:], alphabet)


@cache
def polynomial_data() -> SplitData:
    """Make 1,000 samples of a polynomial of degree 2: 700 to train on, 300 held out.

    It has one term for each of five features, `y = 2 a^2 - b^2 + 3 c^2 + d^2 + 2 e^2 + noise`: nothing in it is linear,
    so that no model without a hidden layer can learn it. Inputs are `[sample, 5]`, uniform in [-1, 1]; the noise is
    normal, with standard deviation 0.1. Targets, `[sample, 1]`, are then standardized by the part to train on, so that
    an MSE of 1 is that of a constant; the noise alone leaves 0.006.

    Example:
        >>> [part.shape for part in polynomial_data()]
        [torch.Size([700, 5]), torch.Size([700, 1]), torch.Size([300, 5]), torch.Size([300, 1])]
    """
    generator = torch.Generator().manual_seed(0)
    inputs = 2 * torch.rand(1000, 5, generator=generator) - 1
    weights = torch.tensor([2.0, -1.0, 3.0, 1.0, 2.0])
    values = inputs.square() @ weights + 0.1 * torch.randn(1000, generator=generator)
    targets = ((values - values[:700].mean()) / values[:700].std()).unsqueeze(1)
    return SplitData(inputs[:700], targets[:700], inputs[700:], targets[700:])


def _read_idx_images(name: str, mean: float, std: float) -> SplitData:
    """Read images of one colour, and their labels."""
    parts = []
    for part in ("train", "t10k"):
        pixels = _read_idx(name, f"{part}-images-idx3-ubyte.gz").astype(np.float32)
        pixels -= 255 * mean
        pixels /= 255 * std
        labels = _read_idx(name, f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
        parts += [torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels)]
    return SplitData(*parts)


def _read_idx(name: str, file: str) -> np.ndarray:
    """Read bytes in the format idx: two zeros, the code of the type, how many axes, their lengths, the elements."""
    content = read(name, file)
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def _read_png_images(files: list[str]) -> Tensor:
    """Read images of CIFAR-10 from pictures each of whose rows is one, in the order height, width, colour."""
    from PIL import Image

    pictures = [Image.open(io.BytesIO(read("cifar10", file))) for file in files]
    images = np.empty((sum(picture.height for picture in pictures), 3, 32 * 32), np.float32)
    parts = np.split(images, np.cumsum([picture.height for picture in pictures])[:-1])

    def decode(picture: Image.Image, part: np.ndarray) -> None:
        np.subtract(np.asarray(picture).swapaxes(1, 2), 255 * _CIFAR10_MEAN, out=part)
        part /= 255 * _CIFAR10_STD

    with ThreadPoolExecutor(2) as pool:  # it lets other threads run; more of them gain little
        list(pool.map(decode, pictures, parts))
    return torch.from_numpy(images).unflatten(2, (32, 32))


def _read_json_labels(file: str) -> Tensor:
    return torch.tensor(json.loads(read("cifar10", file)))
