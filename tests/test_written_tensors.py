"""Losses that write into tensors that they make themselves: batched, and as in a plain loop."""

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs

pytestmark = pytest.mark.usefixtures("float64")

NUM_STEPS = 36  # past the check of a trace at call 30
LRS = [0.02, 0.1, 0.3]


class Filled(nn.Module):
    """A recurrent layer by hand, whose outputs are put into zeros."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 4), nn.Linear(4, 3)

    def forward(self, inputs):
        state, outputs = torch.zeros(len(inputs), 4), torch.zeros(len(inputs), 2, 4)
        for t, x in enumerate(inputs.chunk(2, 1)):
            state = self.cell(x, state)
            outputs[:, t] = state
        return self.head(outputs.mean(1))


class Summed(nn.Module):
    """Layers whose outputs are added to zeros, as in normalizing flows."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 3)) for _ in range(2))

    def forward(self, inputs):
        total = inputs.new_zeros(len(inputs), 3)
        for layer in self.layers:
            total += torch.tanh(layer(inputs))
        return total


class Quantized(nn.Module):
    """The nearest of some codes, picked by ones that are scattered to where the member finds them (VQ-VAE)."""

    def __init__(self):
        super().__init__()
        self.encoder, self.codes, self.head = nn.Linear(6, 4), nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 3)

    def forward(self, inputs):
        encoded = self.encoder(inputs)
        nearest = torch.cdist(encoded, self.codes).argmin(1, keepdim=True)
        code = torch.zeros(len(inputs), 5).scatter_(1, nearest, 1.0) @ self.codes
        return self.head(encoded + (code - encoded).detach()) + (code - encoded).square().mean()


class Replaced(nn.Module):
    """Some columns of a copy of the inputs are replaced, and others scaled (RealNVP)."""

    def __init__(self):
        super().__init__()
        self.shift, self.head = nn.Linear(3, 3), nn.Linear(6, 3)

    def forward(self, inputs):
        outputs = inputs.clone()
        outputs[:, :3] = self.shift(inputs[:, 3:])
        outputs[:, 3:] *= torch.exp(self.shift(inputs[:, :3]))
        return self.head(outputs)


class Gathered(nn.Module):
    """Messages of a graph, added up where their edges end."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        ends = torch.arange(3 * len(inputs)) * 5 % len(inputs)
        messages = self.body(inputs).repeat(3, 1)
        return self.head(torch.tanh(torch.zeros(len(inputs), 8).index_add_(0, ends, messages)))


class OneByOne(nn.Module):
    """Sums that are discounted from the last sample to the first, written number by number."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 1), nn.Linear(7, 3)

    def forward(self, inputs):
        rewards, sums, last = self.body(inputs)[:, 0], torch.zeros(len(inputs)), 0.0
        for t in reversed(range(len(inputs))):
            last = rewards[t] + 0.9 * last
            sums[t] = last
        return self.head(torch.cat([inputs, sums[:, None]], 1))


class Convolved(nn.Module):
    """Numbers in an order that members do not have them in, in memory."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 2, (1, 2)), nn.Linear(8, 3)

    def forward(self, inputs):
        return self.head(self.seen(self.body(inputs.view(-1, 1, 2, 3))))


class WrittenView(Convolved):
    """A view that is written into, and then the base is read."""

    def seen(self, images):
        rows = images.view(-1, 8)
        rows.tanh_()
        return images.flatten(1)


class WrittenBase(Convolved):
    """A base that is written into, and then the view is read."""

    def seen(self, images):
        rows = images.view(-1, 8)
        images.tanh_()
        return rows


class Strided(Convolved):
    """Rows by where they lie in memory."""

    def seen(self, images):
        return images.as_strided((len(images), 8), (8, 1))


def make_task(kind):
    torch.manual_seed(0)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(5)]
    model = kind()
    return vs.Task(
        model, batches, F.cross_entropy, lambda params: torch.optim.SGD(params, lr=0.1), val_batches=batches[:2]
    )


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("kind", [Filled, Summed, Quantized, Replaced, Gathered, OneByOne])
def test_members_that_write_into_new_tensors_are_batched_and_equal_to_a_plain_loop(kind, seeds):
    task = make_task(kind)
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, seeds=seeds, engine="vectorized", divergence_factor=None)
    assert runs.engine.startswith("vectorized, traced")
    stock.assert_equal(runs, task, NUM_STEPS)
    for i, member in enumerate(runs.members):
        model = stock.train(task, member.lr, NUM_STEPS, seed=member.seed).model.eval()
        expected = np.mean([F.cross_entropy(model(x), y).item() for x, y in task.val_batches])
        assert runs.metrics["val_loss"][-1, i] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "told"),
    [(WrittenView, "writes into a view"), (WrittenBase, "writes into a view"), (Strided, "`as_strided` goes by")],
)
def test_what_goes_by_memory_that_members_have_otherwise_trains_as_in_a_plain_loop(kind, told):
    task = make_task(kind)
    with pytest.warns(vs.FallbackWarning, match=told):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine="vectorized", divergence_factor=None)
    stock.assert_equal(runs, task, NUM_STEPS)


def test_run_that_is_gone_on_with_still_writes_into_tensors_of_each_member(tmp_path):
    task = make_task(Filled)
    how = {"lrs": LRS, "num_steps": 2 * NUM_STEPS, "engine": "vectorized", "checkpoint": tmp_path / "kept"}
    whole = vs.sweep(task, **(how | {"checkpoint": None}))

    class Stops(vs.observers.Observer):
        def losses(self, step, loss, hyper):
            if step >= NUM_STEPS:
                raise KeyboardInterrupt

    with pytest.raises(vs.Interrupted):
        vs.sweep(task, callbacks=[Stops()], **how)
    resumed = vs.sweep(task, **how)
    assert resumed.engine == whole.engine
    np.testing.assert_array_equal(resumed.train_loss, whole.train_loss)
    np.testing.assert_array_equal(resumed.metrics["val_loss"], whole.metrics["val_loss"])
