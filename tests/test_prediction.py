"""What trained members say of batches, against their modules called by hand."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs

X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
BATCHES = [(X[start : start + 8], Y[start : start + 8]) for start in range(0, 40, 8)]


@pytest.fixture(scope="module")
def runs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return vs.sweep(vs.Task(model, BATCHES, F.cross_entropy, optimizer=optimizer), lrs=[1e-4, 0.1, 0.2], num_steps=20)


def by_hand(runs, i, inputs=X):
    with torch.no_grad():
        return runs.model(i).eval()(inputs)


@pytest.mark.parametrize("batches", [BATCHES, [inputs for inputs, _ in BATCHES], [list(batch) for batch in BATCHES]])
def test_outputs_are_those_of_the_module_in_eval_mode(runs, batches):
    before = torch.get_rng_state()
    torch.testing.assert_close(runs.predict(batches, member=1), by_hand(runs, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_best_member_is_asked_unless_another_is_named(runs):
    torch.testing.assert_close(runs.predict(BATCHES), by_hand(runs, runs.best()))


def test_several_members_are_averaged(runs):
    expected = (by_hand(runs, 1) + by_hand(runs, 2)) / 2
    torch.testing.assert_close(runs.predict(BATCHES, member=[1, 2]), expected)


def test_dicts_are_the_arguments_of_the_model_and_logits_its_output():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, inputs, targets=None):
            return types.SimpleNamespace(logits=self.linear(inputs))

    def step(model, batch):
        return F.cross_entropy(model(**batch).logits, batch["targets"])

    model = Model()
    batches = [{"inputs": inputs, "targets": targets} for inputs, targets in BATCHES]
    task = vs.Task(model, batches, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    runs = vs.sweep(task, lrs=[0.1], num_steps=4)
    torch.testing.assert_close(runs.predict(batches), runs.model(0).linear(X).detach())


def test_output_that_is_no_tensor_is_named():
    class Model(nn.Linear):
        def forward(self, inputs):
            return {"outputs": super().forward(inputs)}

    model = Model(6, 3)
    step = lambda model, batch: model(batch[0])["outputs"].pow(2).mean()  # noqa: E731
    task = vs.Task(model, BATCHES, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"output is a tensor, or has `logits`; got dict\. Call `runs\.model\(i\)`"):
        vs.sweep(task, lrs=[0.1], num_steps=2).predict(BATCHES)


def test_mistakes_are_told(runs):
    with pytest.raises(ValueError, match="`batches` must hold something"):
        runs.predict([])
    with pytest.raises(ValueError, match="`member` must name at least one"):
        runs.predict(BATCHES, member=[])
    with pytest.raises(IndexError, match="must be one of the 3 members; got 7"):
        runs.predict(BATCHES, member=7)
