"""Sweeps of several tasks in one comparison."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vecsweep as vs

LRS = [0.02, 0.1]


def make_task(width):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 2))
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 4, generator=generator), torch.arange(8) % 2) for _ in range(3)]
    return vs.Task(
        model,
        batches,
        F.cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        val_batches=batches[:1],
    )


def sweep(width, epochs=2, **how):
    return vs.sweep(make_task(width), lrs=LRS, vary={"weight_decay": [0, 0.1]}, epochs=epochs, **how)


@pytest.fixture(scope="module")
def parts():
    return {3: sweep(3), 5: sweep(5)}


def test_joined_sweeps_have_the_members_of_each_and_its_number(parts):
    runs = vs.join(parts, "width")
    assert [m.hyper["width"] for m in runs.members] == [3] * 4 + [5] * 4
    assert [m.lr for m in runs.members] == [m.lr for own in parts.values() for m in own.members]
    for width, own in parts.items():
        selected = runs.select(width=width)
        np.testing.assert_array_equal(selected.train_loss, own.train_loss)
        np.testing.assert_array_equal(selected.metrics["val_loss"], own.metrics["val_loss"])
        np.testing.assert_array_equal(selected.hyper["weight_decay"], own.hyper["weight_decay"])
    best = min((own.final()[own.best()], width, own.best()) for width, own in parts.items())
    member = runs.members[runs.best()]
    assert (member.hyper["width"], member.lr) == (best[1], parts[best[1]].members[best[2]].lr)
    assert "width 5" in str(runs.ranking())


def test_joined_sweep_gives_the_models_of_each(parts):
    runs = vs.join(parts, "width")
    for i, (width, k) in enumerate((width, k) for width in parts for k in range(4)):
        own, expected = runs.model(i).state_dict(), parts[width].model(k).state_dict()
        assert all(torch.equal(own[name], value) for name, value in expected.items())


def test_joined_sweep_is_extended_and_branched_as_each(parts):
    mixed = [6, 0, 5]
    joined = vs.join(parts, "width")
    longer = joined._take(mixed).extend(epochs=1)
    expected = {width: sweep(width, epochs=3) for width in parts}
    whole = vs.join(expected, "width")
    for column, i in enumerate(mixed):
        assert longer.members[column].setting == whole.members[i].setting
        np.testing.assert_allclose(longer.train_loss[:, column], whole.train_loss[:, i], rtol=1e-5)
    branched = joined.branch(6, lrs=[0.01, 0.05], epochs=1)
    assert [(m.lr, m.hyper["width"]) for m in branched.members] == [(0.01, 5), (0.05, 5)]
    np.testing.assert_array_equal(branched.train_loss[:6, 0], joined.train_loss[:, 6])


def test_joined_sweep_is_saved_and_read(parts, tmp_path):
    runs = vs.join(parts, "width")
    read = vs.load(runs.save(tmp_path / "joined.npz"))
    assert [m.setting for m in read.members] == [m.setting for m in runs.members]
    np.testing.assert_array_equal(read.train_loss, runs.train_loss)


def test_sweeps_that_cannot_be_compared_are_refused(parts):
    with pytest.raises(ValueError, match=r"must have the same steps; width 3 has 6, 5 has 3"):
        vs.join({3: parts[3], 5: sweep(5, epochs=1)}, "width")
    with pytest.raises(ValueError, match=r"must be a new one; the sweeps have 'weight_decay'"):
        vs.join(parts, "weight_decay")
    with pytest.raises(ValueError, match=r"must be told apart by numbers; got 'small'"):
        vs.join({"small": parts[3]}, "width")
    with pytest.raises(ValueError, match=r"must be at least one; got none"):
        vs.join({}, "width")
    with pytest.raises(TypeError, match=r"`sweeps` must be a dict from numbers to sweeps"):
        vs.join(list(parts.values()), "width")
    for name in ("step", "train_loss", "member"):
        with pytest.raises(ValueError, match=rf"must be a new one; the sweeps have '{name}'"):
            vs.join(parts, name)


def test_numbers_of_numpy_tell_sweeps_apart_too(parts):
    runs = vs.join(dict(zip(np.array(list(parts)), parts.values(), strict=True)), "width")
    assert [m.setting for m in runs.members] == [m.setting for m in vs.join(parts, "width").members]
