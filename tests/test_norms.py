"""Norms of gradients and updates: the numbers of a plain torch loop, from every engine; nothing where not asked for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep.cli import main

LRS = [0.01, 0.1, 0.5]
BOTH = ["grad_norm", "update_norm"]


class Custom(torch.optim.SGD):
    """A class that no stacked update stands for."""


class Scaled(nn.Module):
    """A learned temperature, a parameter without an axis."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x * self.scale.exp()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "own class": lambda p: Custom(p, lr=0.1, momentum=0.9),
}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 3), Scaled()).double()


def make_task(optimizer="SGD", model=None):
    torch.manual_seed(1)
    batches = [(torch.randn(5, 6, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(7)]
    return vs.Task(model or make_model(), batches, F.cross_entropy, optimizer=OPTIMIZERS[optimizer])


def plain_loop(task, lr, num_steps, max_grad_norm=None, accumulation_steps=1):
    """The norms that anybody would compute, `[step]`: of the gradient before clipping, and of what a step changed."""
    model = make_model()
    optimizer = task.optimizer(model.parameters())
    optimizer.param_groups[0]["lr"] = lr
    grad_norms, update_norms, batches = [], [], iter(task.batches * 20)
    for _ in range(num_steps):
        optimizer.zero_grad()
        for _ in range(accumulation_steps):
            inputs, targets = next(batches)
            (F.cross_entropy(model(inputs), targets) / accumulation_steps).backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        grad_norms.append(flat.norm().item())
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer.step()
        after = nn.utils.parameters_to_vector(model.parameters()).detach()
        update_norms.append((after - before).norm().item())
    return {"grad_norm": np.array(grad_norms), "update_norm": np.array(update_norms)}


@pytest.mark.parametrize(
    ("engine", "optimizer", "options"),
    [
        ("vectorized", "SGD", {}),
        ("vectorized", "AdamW", {"chunk_size": 2}),
        ("vectorized", "own class", {}),
        ("vectorized", "SGD", {"max_grad_norm": 0.3}),
        ("vectorized", "AdamW", {"accumulation_steps": 2, "max_grad_norm": 0.3}),
        ("sequential", "SGD", {"max_grad_norm": 0.3}),
        ("sequential", "own class", {"accumulation_steps": 2}),
    ],
)
def test_norms_equal_those_of_a_plain_loop(engine, optimizer, options):
    task = make_task(optimizer)
    runs = vs.sweep(task, lrs=LRS, num_steps=40, record=BOTH, engine=engine, progress=False, **options)
    assert runs.engine.startswith(engine)
    own = {name: value for name, value in options.items() if name != "chunk_size"}
    for i, lr in enumerate(LRS):
        for name, expected in plain_loop(task, lr, 40, **own).items():
            np.testing.assert_allclose(runs.norms[name][:, i], expected, rtol=1e-9, err_msg=f"{name} at {lr}")


def test_processes_record_the_same(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    task = make_task()
    runs = vs.sweep(task, lrs=LRS, num_steps=20, record=BOTH, engine="parallel", progress=False)
    if not runs.engine.startswith("parallel"):
        pytest.skip("no processes here")
    for i, lr in enumerate(LRS):
        for name, expected in plain_loop(task, lr, 20).items():
            np.testing.assert_allclose(runs.norms[name][:, i], expected, rtol=1e-9)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_recording_changes_no_bit_of_the_training(engine):
    plain, recorded = (
        vs.sweep(make_task(), lrs=LRS, num_steps=40, record=names, engine=engine, progress=False)
        for names in ([], BOTH)
    )
    np.testing.assert_array_equal(plain.train_loss, recorded.train_loss)
    for p, q in zip(plain.model(1).parameters(), recorded.model(1).parameters(), strict=True):
        assert torch.equal(p, q)
    assert plain.norms == {}


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_member_that_diverged_has_no_norms_from_there_on_and_the_others_have_theirs(engine):
    task = make_task()
    lrs = [0.01, 1e30]
    runs = vs.sweep(task, lrs=lrs, num_steps=40, record=BOTH, engine=engine, divergence_factor=2.0, progress=False)
    (end,) = runs.diverged_at[1:]
    assert end > 0
    assert np.isnan(runs.norms["grad_norm"][end:, 1]).all()
    assert np.isfinite(runs.norms["grad_norm"][:, 0]).all()
    np.testing.assert_allclose(runs.norms["update_norm"][:, 0], plain_loop(task, 0.01, 40)["update_norm"], rtol=1e-9)


def test_step_that_a_loss_scale_skips_has_no_update(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2), Scaled())
    batches = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(4)]
    task = vs.Task(model, batches, lambda y, t: (y - t).pow(2).mean(), optimizer=torch.optim.SGD(model.parameters()))
    found = {}
    for engine in ("vectorized", "sequential"):
        runs = vs.sweep(task, lrs=[0.01], num_steps=8, record=BOTH, engine=engine, precision="fp16", progress=False)
        assert runs.engine.startswith(engine)
        found[engine] = runs.norms
        taken = np.isfinite(runs.norms["update_norm"][:, 0])
        assert (runs.norms["update_norm"][taken] > 0).all()
    for name in BOTH:
        np.testing.assert_allclose(found["vectorized"][name], found["sequential"][name], rtol=2e-2)


def test_norms_go_on_are_saved_selected_and_handed_on(tmp_path):
    task = make_task()
    runs = vs.sweep(task, lrs=LRS, num_steps=20, record=["grad_norm"], progress=False)
    longer = runs.extend(num_steps=10)
    np.testing.assert_allclose(longer.norms["grad_norm"][:, 1], plain_loop(task, 0.1, 30)["grad_norm"], rtol=1e-9)
    branch = runs.branch(1, lrs=[0.1, 0.2], num_steps=5)
    assert branch.norms["grad_norm"].shape == (25, 2)
    again = vs.load(runs.save(tmp_path / "runs"))
    np.testing.assert_array_equal(again.norms["grad_norm"], runs.norms["grad_norm"])
    assert list(again.norms) == ["grad_norm"]
    np.testing.assert_array_equal(runs.select(lr=0.5).norms["grad_norm"], runs.norms["grad_norm"][:, 2:])
    steps, values = runs.curve("grad_norm")
    assert values.shape == (20, 3)
    assert steps.tolist() == list(range(20))
    assert sum(row["metric"] == "grad_norm" for row in runs.records()) == 60


def test_report_draws_the_norms(tmp_path):
    pytest.importorskip("plotly")
    runs = vs.sweep(make_task(), lrs=LRS, num_steps=20, record=BOTH, progress=False)
    text = runs.to_html(tmp_path / "runs.html").read_text(encoding="utf-8")
    assert '"name":"grad_norm"' in text
    assert '"name":"update_norm"' in text


def test_command_records_norms(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch, vecsweep as vs\n"
        "def task():\n"
        "    model = torch.nn.Linear(3, 1)\n"
        "    batches = [(torch.eye(3), torch.ones(3, 1))]\n"
        "    optimizer = torch.optim.SGD(model.parameters())\n"
        "    return vs.Task(model, batches, torch.nn.functional.mse_loss, optimizer=optimizer)\n"
    )
    command = ["sweep", "mine.py:task", "--lrs", "0.1", "--num-steps", "4", "--output-dir", "sweep"]
    assert main([*command, "--record", "grad_norm,update_norm"]) == 0
    norms = vs.load(tmp_path / "sweep" / "sweep.npz").norms
    np.testing.assert_allclose(norms["update_norm"], 0.1 * norms["grad_norm"], rtol=1e-5)  # which is what SGD does
    assert main([*command, "--record", "gradnorm"]) == 2
    assert "`record` must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "error", "told"),
    [
        ("grad_norm", TypeError, "must be a list of names"),
        (["grad_nrom"], ValueError, "Did you mean 'grad_norm'"),
        (3, TypeError, "must be a list of names"),
    ],
)
def test_name_that_there_is_not_is_told_before_any_work(record, error, told):
    with pytest.raises(error, match=told):
        vs.sweep(make_task(), lrs=LRS, num_steps=2, record=record)
