"""Matrices that are too large for memory lie in files that are mapped into it; what is in them is the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vecsweep as vs
from vecsweep import _arrays
from vecsweep._arrays import blank, column_blocks, row_blocks


def make_task():
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(4)]
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return vs.Task(model, data, nn.functional.mse_loss, optimizer=optimizer)


HOW = {
    "lrs": np.geomspace(1e-3, 30.0, 300),  # two blocks of columns
    "schedules": {"one-cycle": vs.schedules.one_cycle(), "constant": vs.schedules.constant()},
    "num_steps": 48,
    "record": ["grad_norm"],
}


def curves_of(runs):
    return {"lr": runs.lr, "train_loss": runs.train_loss, **runs.hyper, **runs.norms}


def test_curves_in_files_are_those_in_memory_bit_for_bit(monkeypatch):
    expected = vs.sweep(make_task(), **HOW)
    expected_longer = expected.extend(num_steps=3)
    assert not any(isinstance(values, np.memmap) for values in curves_of(expected).values())
    monkeypatch.setattr(_arrays, "most_in_memory", lambda: 0)
    runs = vs.sweep(make_task(), **HOW)
    longer = runs.extend(num_steps=3)
    assert runs.members == expected.members
    assert any(member.diverged_at is not None for member in runs.members)
    for own, other in ((runs, expected), (longer, expected_longer)):
        assert curves_of(own).keys() == curves_of(other).keys()
        for name, values in curves_of(own).items():
            assert isinstance(values, np.memmap), name
            np.testing.assert_array_equal(values, curves_of(other)[name], err_msg=name)
        np.testing.assert_array_equal(own.final(), other.final())


def test_plan_holds_what_schedules_give_also_beyond_the_first_columns():
    runs = vs.sweep(make_task(), **HOW)
    for i in (0, 1, 255, 256, 599):
        member = runs.members[i]
        progress = np.linspace(0, 1, 48)
        factor = HOW["schedules"][member.schedule](progress)
        np.testing.assert_allclose(runs.lr[:, i], member.lr * factor, rtol=1e-12)


def test_results_in_files_are_saved_and_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(_arrays, "most_in_memory", lambda: 0)
    runs = vs.sweep(make_task(), lrs=[0.01, 0.1], num_steps=5)
    loaded = vs.load(runs.save(tmp_path / "runs.npz"))
    np.testing.assert_array_equal(loaded.train_loss, runs.train_loss)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone lists what is mapped")
def test_file_is_gone_with_its_matrix(monkeypatch, tmp_path):
    monkeypatch.setattr(_arrays, "most_in_memory", lambda: 0)
    monkeypatch.setattr(_arrays.tempfile, "tempdir", str(tmp_path))

    def mapped():
        with Path("/proc/self/maps").open() as file:
            return [line for line in file if str(tmp_path) in line]

    matrix = blank(7, 5, fill=2.5)
    np.testing.assert_array_equal(matrix, np.full((7, 5), 2.5))
    assert list(tmp_path.iterdir()) == [], "nobody else finds it, nor does it stay after a crash"
    assert len(mapped()) == 1
    del matrix
    assert mapped() == []


def test_matrix_of_ordinary_size_is_in_memory():
    assert type(blank(3, 2)) is np.ndarray
    assert np.isnan(blank(3, 2)).all()


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 700), (3, 2**22 + 1)])
def test_blocks_cover_each_row_and_column_once(shape):
    matrix = np.broadcast_to(np.float64(0), shape)
    assert [i for rows in row_blocks(matrix) for i in range(*rows.indices(shape[0]))] == list(range(shape[0]))
    covered = [i for columns in column_blocks(min(shape[1], 2000)) for i in range(columns.start, columns.stop)]
    assert covered == list(range(min(shape[1], 2000)))
