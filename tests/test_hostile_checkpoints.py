"""Checkpoints whose checksums are right and whose contents are anything: refused, or gone on with; never another error.

`make soak` tries 1,000; VECSWEEP_FUZZED_SNAPSHOTS is how many.
"""

import os
import random
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import vecsweep as vs
from vecsweep.checkpoint import disk

NUM = int(os.environ.get("VECSWEEP_FUZZED_SNAPSHOTS", "40"))
HOW = {
    "lrs": [0.01, 0.1],
    "seeds": 2,
    "num_steps": 64,
    "val_every": 16,
    "schedules": [vs.schedules.plateau(patience=1)],
    "compile": False,
    "engine": "vectorized",
    "checkpoint_every": "16 steps",
}


def make_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 3))
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(5)]
    optimizer = torch.optim.AdamW(model.parameters())
    return vs.Task(model, batches, nn.functional.cross_entropy, optimizer=optimizer, val_batches=batches)


class Stop(vs.observers.Observer):
    def metrics(self, step, values):
        if step == 48:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped, its snapshot's name, and what is in that."""
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    with pytest.raises(vs.Interrupted):
        vs.sweep(make_task(), **HOW, checkpoint=folder, callbacks=[Stop()])
    last = max((folder / "run-000").glob("step-*"))
    return folder, last.name, disk.read_folder(last)


def paths_in(value, path=()):
    """The places of all values within containers, the containers themselves included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, own in items:
        yield from paths_in(own, (*path, key))


def exchanged(value, path, by):
    """A copy of nested containers with another value at a place."""
    if not path:
        return by(value)
    if isinstance(value, dict):
        return {key: exchanged(own, path[1:], by) if key == path[0] else own for key, own in value.items()}
    return type(value)(exchanged(own, path[1:], by) if i == path[0] else own for i, own in enumerate(value))


def likes_of(value):
    """What may stand in a value's place."""
    likes = [None, -1, 10**9, "x", [], {}, 1.5, True, torch.zeros(2, 3), np.zeros((3, 1)), float("nan")]
    if isinstance(value, torch.Tensor):
        likes += [value.double(), value.reshape(-1)[:1], value.unsqueeze(0)]
    if isinstance(value, np.ndarray):
        likes += [value[:1], value.astype(float), np.full(value.shape, -7), value.T]
    if type(value) in (int, float):
        likes += [value + 1, -value, value * 1000]
    if isinstance(value, dict):
        likes += [dict(list(value.items())[1:]), {**value, "another": 1}]
    if isinstance(value, list | tuple):
        likes += [list(value)[1:], list(value) * 2]
    return likes


def test_checkpoint_that_somebody_wrote_is_refused_or_gone_on_with(stopped, tmp_path):
    folder, name, whole = stopped
    places, chance, num_refused = list(paths_in(whole)), random.Random(0), 0
    # Generators' states have thousands of numbers: a place is drawn by its depth first.
    depths = sorted({len(place) for place in places})
    for k in range(NUM):
        depth = chance.choice(depths)
        place = chance.choice([own for own in places if len(own) == depth])
        other = exchanged(whole, place, lambda value: chance.choice(likes_of(value)))
        own = tmp_path / str(k)
        shutil.copytree(folder, own)
        for path in (own / "run-000").glob("step-*"):
            shutil.rmtree(path)
        try:
            disk.write_folder(own / "run-000" / name, other, {})
        except TypeError:
            continue  # nothing that the format can hold
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                runs = vs.sweep(make_task(), **HOW, checkpoint=own)
            except (vs.ResultFileError, ValueError):
                num_refused += 1
            except Exception as error:
                raise AssertionError(f"{place}: {type(error).__name__}, {error}") from error
            else:
                assert runs.train_loss.shape == (64, 4)
        shutil.rmtree(own)
    assert num_refused > NUM / 4
