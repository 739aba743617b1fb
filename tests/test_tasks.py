"""The built-in tasks: their data, batches and seeds; and tasks found by name."""

import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import vecsweep as vs
from vecsweep.tasks import TASKS, ShuffledBatches, digits, digits_data, load_task

TASK_FILE = """
import torch
import vecsweep as vs
from siblings import WIDTH

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.full((WIDTH,), i / 8), torch.ones(1)

def make_task(**loader_options):
    model = torch.nn.Linear(WIDTH, 1)
    batches = torch.utils.data.DataLoader(Samples(), batch_size=4, **loader_options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return vs.Task(model, batches, torch.nn.functional.mse_loss, optimizer)

def with_spawned_worker():
    return make_task(num_workers=1, multiprocessing_context="spawn")

def make_number():
    return 3

def mistaken():
    return {}["missing"]
"""


@pytest.fixture(autouse=True)
def one_thread():
    """Keep PyTorch from waiting for cores that other work holds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's files, which are forgotten afterwards."""
    (tmp_path / "siblings.py").write_text("WIDTH = 3\n")
    (tmp_path / "own_task.py").write_text(TASK_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def seeded(seed, batches):
    """One pass over batches, as under the seed of a sweep."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return list(batches)


def test_digits_are_split_into_parts_of_1437_and_360_with_pixels_in_the_unit_interval():
    data = digits_data()
    assert data.train_inputs.shape == (1437, 64)
    assert data.test_inputs.shape == (360, 64)
    assert len(data.train_targets) == 1437
    assert len(data.test_targets) == 360
    assert data.train_inputs.dtype == torch.float32
    assert data.train_inputs.min() == 0
    assert data.train_inputs.max() == 1
    assert set(data.train_targets.tolist()) == set(data.test_targets.tolist()) == set(range(10))


def test_the_two_parts_hold_each_of_the_1797_digits_once():
    data = digits_data()
    pixels, labels = load_digits(return_X_y=True)
    published = sorted((*row, label) for row, label in zip(pixels.tolist(), labels.tolist(), strict=True))
    inputs = torch.cat([data.train_inputs, data.test_inputs]) * 16
    targets = torch.cat([data.train_targets, data.test_targets])
    ours = sorted((*row, label) for row, label in zip(inputs.tolist(), targets.tolist(), strict=True))
    assert len(ours) == 1797
    assert ours == published


def test_the_split_does_not_depend_on_the_global_seed():
    first, second = (seeded(seed, digits_data()) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_builtin_task_leaves_the_global_random_generators_alone():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for make_task in TASKS.values():
        make_task()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    batches = digits().batches
    first, again, other = (seeded(seed, batches) for seed in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


def test_a_pass_gives_full_batches_of_different_samples_in_a_new_order_each_time():
    batches = ShuffledBatches(torch.arange(10), torch.arange(10) * 2, batch_size=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = list(batches), list(batches)
    assert len(first) == len(batches) == 2
    assert all(len(inputs) == 4 for inputs, _ in first)
    assert all(torch.equal(targets, inputs * 2) for inputs, targets in first)
    assert len(torch.cat([inputs for inputs, _ in first]).unique()) == 8
    assert not torch.equal(first[0][0], second[0][0])


def test_each_seed_has_its_own_initial_weights_and_all_members_of_a_seed_the_same():
    found = vs.range_test(digits(), start_lr=1e-4, end_lr=1e-2, num_lrs=3, num_steps=1, seeds=2)
    losses = found.train_loss[0].reshape(3, 2)  # [lr, seed]
    assert (losses == losses[0]).all()
    assert losses[0, 0] != losses[0, 1]


def test_the_lr_that_a_range_test_on_digits_suggests_reads_over_nine_in_ten_unseen_digits():
    task, data = digits(), digits_data()
    found = vs.range_test(task, start_lr=1e-5, end_lr=10, num_lrs=64, num_steps=100)
    runs = vs.sweep(task, lrs=[found.suggest().lr], epochs=20)
    with torch.no_grad():
        is_right = runs.model(0)(data.test_inputs).argmax(dim=1) == data.test_targets
    assert is_right.double().mean() > 0.9


def test_missing_scikit_learn_is_told_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn.*pip install 'vecsweep\[demo\]'"):
        load_task("digits")


@pytest.mark.parametrize("name", ["own_task.py:make_task", "./own_task.py:make_task", "own_task:make_task"])
def test_a_task_of_a_users_file_or_module_is_found_with_its_sibling_imports(name, folder):
    task = load_task(name)
    assert task.model.in_features == 3
    assert [inputs.shape for inputs, _ in task.batches] == [(4, 3), (4, 3)]


def test_a_file_is_found_by_an_absolute_path_from_another_folder(folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert isinstance(load_task(f"{folder / 'own_task.py'}:make_task"), vs.Task)


def test_classes_of_a_users_file_can_be_pickled(folder):
    samples = load_task("own_task.py:make_task").batches.dataset
    assert type(pickle.loads(pickle.dumps(samples))) is type(samples)


def test_a_worker_that_is_started_afresh_can_read_the_data_set_of_a_users_file(folder):
    assert len(list(load_task("own_task.py:with_spawned_worker").batches)) == 2


def test_a_users_file_named_like_a_loaded_module_leaves_that_in_place(folder):
    loaded = sys.modules["json"]
    (folder / "json.py").write_text(TASK_FILE)
    samples = load_task("json.py:make_task").batches.dataset
    assert sys.modules["json"] is loaded
    assert type(pickle.loads(pickle.dumps(samples))) is type(samples)


def test_a_file_that_is_loaded_again_is_read_again(folder):
    load_task("own_task.py:make_task")
    Path("own_task.py").write_text(TASK_FILE.replace("WIDTH, 1", "WIDTH, 2"))
    assert load_task("own_task.py:make_task").model.out_features == 2


def test_a_file_that_cannot_be_imported_leaves_no_module_behind(folder):
    (folder / "broken.py").write_text("import no_such_package\n")
    with pytest.raises(ValueError, match=r"broken\.py could not be imported.*no_such_package.*line 1 of"):
        load_task("broken.py:make_task")
    assert "broken" not in sys.modules


def test_a_syntax_error_is_told_with_the_line_and_the_file_it_is_in(folder):
    (folder / "siblings.py").write_text("WIDTH = 3\ndef f(:\n")
    with pytest.raises(ValueError, match=r"own_task\.py could not be imported.*line 2 of .*siblings\.py"):
        load_task("own_task.py:make_task")


def test_a_missing_package_of_a_module_is_told_with_the_line(folder):
    (folder / "broken.py").write_text("import os\nimport no_such_package\n")
    with pytest.raises(ValueError, match=r"^broken could not.*'no_such_package', at line 2 of .*broken\.py"):
        load_task("broken:make_task")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "must be one of the built-in ones, digits, digits-cnn; got 'digit'. Did you mean 'digits'?"),
        ("imagenet", r"got 'imagenet'\. For a task of your own, pass path/to/file\.py:function"),
        ("own_task.py", r"add its function: own_task\.py:function"),
        ("own_task.py:", "Name a function after the colon"),
        (":make_task", "Name a function after the colon"),
        ("nowhere.py:make_task", r"nowhere\.py must be a Python file; there is no such file in"),
        ("no/where:make_task", "there is no such file in"),
        ("./:make_task", "it is a folder"),
        ("no_such_module:make_task", "no_such_module could not be imported: No module named"),
        ("own_task.py:make_tsk", r"has none of that name\. Its functions are make_task, .*Did you mean 'make_task'"),
        ("own_task.py:WIDTH", "must be a function that returns a Task; got int"),
        ("siblings.py:make_task", "It has no public functions"),
        ("own_task.py:make_number", r"must return a vecsweep\.Task; it returned int"),
    ],
)
def test_a_name_that_leads_to_no_task_is_told_with_what_to_do(name, message, folder):
    with pytest.raises(ValueError, match=message):
        load_task(name)


def test_an_error_inside_the_users_function_comes_through_as_it_is(folder):
    with pytest.raises(KeyError, match="missing"):
        load_task("own_task.py:mistaken")
