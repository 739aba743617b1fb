"""Small data sets in the formats of the real ones, for tests that must not need what `vecsweep data` fetches."""

import gzip
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vecsweep.tasks import data, fetching

LOADERS = [data.mnist_data, data.fashion_mnist_data, data.cifar10_data, data.shakespeare_data]
IDX_SIZES = {"train": 256, "t10k": 40}
TEXT = "".join(chr(97 + i * i % 23) for i in range(40_000)) + "!"  # the last tenth has a symbol of its own


def draw_images(seed, *shape):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def draw_labels(seed, num_labels):
    return np.random.default_rng(seed).integers(10, size=num_labels, dtype=np.uint8)


def to_idx(values):
    """Write bytes as http://yann.lecun.com/exdb/mnist describes it: big-endian, 8 for the type of unsigned bytes."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(length.to_bytes(4, "big") for length in values.shape)
    return header + values.tobytes()


def to_png(images):
    """Write images, `[sample, height, width, colour]`, as the rows of one picture."""
    picture = io.BytesIO()
    Image.fromarray(images.reshape(len(images), -1, 3)).save(picture, "PNG")
    return picture.getvalue()


def make_contents():
    """Every file of every set by its path in the package, as it is before it is compressed."""
    contents = {name: {} for name in fetching.SETS}
    for seed, name in enumerate(("mnist", "fashion-mnist")):
        for path in fetching.SETS[name].files:
            part, kind, *_ = Path(path).name.split("-")
            size = IDX_SIZES[part]
            is_images = kind == "images"
            values = draw_images(seed, size, 28, 28) if is_images else draw_labels(seed, size)
            contents[name][path] = to_idx(values)
    for seed in range(6):
        file = f"data_batch_{seed + 1}.png" if seed < 5 else "test_batch.png"
        contents["cifar10"][f"package/{file}"] = to_png(draw_images(seed, 40, 32, 32, 3))
    contents["cifar10"]["package/train_lables.json"] = json.dumps(draw_labels(0, 200).tolist()).encode()
    contents["cifar10"]["package/test_lables.json"] = json.dumps(draw_labels(1, 40).tolist()).encode()
    contents["shakespeare"]["microgpt/input.txt"] = TEXT.encode()
    return contents


def stored(path, content):
    """A file as it is kept: compressed, if that is what its name says."""
    return gzip.compress(content) if path.endswith(".gz") else content


def use_small_sets(monkeypatch, folder):
    """Take small sets for the known ones, with their hashes, and an empty folder for the cache; return the contents."""
    contents = make_contents()
    for name, files in contents.items():
        hashes = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        assert hashes.keys() == fetching.SETS[name].files.keys()
        monkeypatch.setitem(fetching.SETS, name, replace(fetching.SETS[name], files=hashes))
    monkeypatch.setenv("VECSWEEP_DATA", str(folder))
    return contents


def put_small_sets(monkeypatch, folder):
    """Put small sets into a cache folder, as if they had been fetched."""
    for name, files in use_small_sets(monkeypatch, folder).items():
        (folder / name).mkdir(parents=True)
        for path, content in files.items():
            (folder / name / Path(path).name).write_bytes(stored(path, content))


def forget():
    """Let the loaders read anew."""
    for loader in LOADERS:
        loader.cache_clear()
