"""The built-in tasks: their data, batches and seeds; and tasks found by name."""

import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from small_sets import IDX_SIZES, forget, put_small_sets
from torch import nn

import vecsweep as vs
import vecsweep.tasks.data as datasets
from vecsweep.tasks import TASKS, ShuffledBatches, cifar10, digits, load_task
from vecsweep.tasks.batches import RandomCrops, crop_and_flip, crops_in_order
from vecsweep.tasks.builtin import accuracy
from vecsweep.tasks.data import digits_data
from vecsweep.tasks.models import vgg

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

def make_of_width(width, *more, depth, bias=True):
    return make_task()

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


@pytest.fixture
def small_sets(tmp_path, monkeypatch):
    """All data sets of the built-in tasks, small."""
    forget()
    put_small_sets(monkeypatch, tmp_path)
    yield
    forget()


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


def test_every_builtin_task_leaves_the_global_random_generators_alone(small_sets):
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


def test_transformed_inputs_keep_their_targets():
    batches = ShuffledBatches(torch.arange(10), torch.arange(10) * 2, batch_size=4, transform=lambda inputs: -inputs)
    assert all(torch.equal(targets, -2 * inputs) for inputs, targets in seeded(0, batches))


def test_crops_of_a_text_have_the_symbols_that_follow_as_targets_and_come_from_all_of_it():
    batches = seeded(0, RandomCrops(torch.arange(1000), length=8, batch_size=5))
    assert len(batches) == 25
    assert all(inputs.shape == targets.shape == (5, 8) for inputs, targets in batches)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs - inputs[:, :1], torch.arange(8).expand(125, 8))
    assert inputs[:, 0].min() < 100
    assert inputs[:, 0].max() > 890


def test_the_last_symbol_of_a_text_can_be_a_target():
    batches = seeded(0, RandomCrops(torch.arange(9), length=7, batch_size=1))
    assert {int(targets[0, -1]) for _ in range(20) for _, targets in batches} <= {7, 8}
    targets = [targets for seed in range(20) for _, targets in seeded(seed, RandomCrops(torch.arange(9), 7, 1))]
    assert {int(crop[0, -1]) for crop in targets} == {7, 8}


def test_validation_crops_are_spread_from_the_start_of_a_text_to_its_end():
    batches = crops_in_order(torch.arange(1000), length=8, batch_size=5, num_batches=3)
    assert [inputs.shape for inputs, _ in batches] == [(5, 8)] * 3
    starts = torch.cat([inputs[:, 0] for inputs, _ in batches])
    assert starts[0] == 0
    assert batches[-1][1][-1, -1] == 999
    assert set(starts.diff().tolist()) <= {70, 71}


def test_each_image_is_moved_and_mirrored_by_numbers_of_its_own():
    images = torch.randn(64, 3, 7, 9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = crop_and_flip(images, margin=2)
    moves = set()
    for image, moved in zip(images, found, strict=True):
        fits = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                for is_flipped in (False, True):
                    expected = torch.zeros(3, 7, 9)
                    for row in range(7):
                        for column in range(9):
                            if 0 <= row + down < 7 and 0 <= column + right < 9:
                                place = 8 - column if is_flipped else column
                                expected[:, row, place] = image[:, row + down, column + right]
                    if torch.equal(moved, expected):
                        fits.append((down, right, is_flipped))
        assert len(fits) == 1
        moves |= set(fits)
    assert {move[0] for move in moves} == {move[1] for move in moves} == {-2, -1, 0, 1, 2}
    assert len(moves) > 30


def test_images_are_moved_by_no_more_than_the_margin_and_about_half_are_mirrored():
    image = torch.zeros(1, 32, 32)
    image[0, 10, 10] = 1
    found = seeded(0, (crop_and_flip(image.expand(4000, 1, 32, 32)),))[0]
    rows, columns = (found.nonzero()[:, axis] for axis in (2, 3))
    is_flipped = columns > 16
    assert abs(is_flipped.float().mean() - 0.5) < 0.05
    columns = torch.where(is_flipped, 31 - columns, columns)
    for places in (rows, columns):
        counts = places.bincount()
        assert counts[:6].sum() == 0
        assert len(counts) == 15
        assert (counts[6:] / 4000 - 1 / 9).abs().max() < 0.03


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


def test_accuracy_is_the_share_of_largest_outputs_that_are_the_targets():
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(outputs, torch.tensor([1, 0, 0, 0])) == 0.75
    of_positions = outputs.T.unsqueeze(0)  # [batch, class, position]
    assert accuracy(of_positions, torch.tensor([[1, 0, 0, 0]])) == 0.75


CONV3X3 = [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (128, 128, 3, 3)]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("digits", [(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)]),
        ("digits-cnn", [(16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (10, 128), (10,)]),
        ("mnist", [(500, 784), (500,), (256, 500), (256,), (10, 256), (10,)]),
        ("fashion-mnist", [(500, 784), (500,), (256, 500), (256,), (10, 256), (10,)]),
        ("cifar10", [*CONV3X3, (128, 2048), (10, 128)]),
        ("tanh-regression", [(32, 5), (32,), (32,), (32, 32), (32,), (32,), (1, 32), (1,)]),
    ],
)
def test_a_model_has_the_parameters_that_its_task_says(name, shapes, small_sets):
    assert [tuple(param.shape) for param in TASKS[name]().model().parameters()] == shapes


def test_the_model_of_photographs_has_688_224_weights_and_pools_after_convolutions_1_3_and_6(small_sets):
    model = cifar10(num_train=128).model()
    assert sum(param.numel() for param in model.parameters()) == 688_224
    kinds = "".join({nn.Conv2d: "c", nn.ReLU: "r", nn.MaxPool2d: "p"}.get(type(layer), "-") for layer in model)
    assert kinds == "crpcrcrpcrcrcrp--r-"
    assert [layer.padding for layer in model if isinstance(layer, nn.Conv2d)] == [(1, 1)] * 6
    assert all(layer.bias is None for layer in model if isinstance(layer, nn.Conv2d | nn.Linear))


def test_a_signal_keeps_its_size_through_the_convolutions_without_biases():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = vgg()(torch.randn(32, 3, 32, 32))
    assert 0.1 < outputs.std() < 2


def test_batch_norm_stands_before_each_tanh():
    kinds = [type(layer).__name__ for layer in TASKS["tanh-regression"]().model()]
    assert kinds == ["Linear", "BatchNorm1d", "Tanh"] * 2 + ["Linear"]


def test_no_character_is_foretold_from_those_that_follow_it(small_sets):
    task = TASKS["shakespeare"]()
    model = task.model().eval()
    symbols = task.val_batches[0][0][:1].clone()
    before = model(symbols)
    symbols[0, 40] = (symbols[0, 40] + 1) % 20
    changed = (model(symbols) - before).abs().amax(dim=1)[0] > 1e-6
    assert changed.tolist() == [False] * 40 + [True] * 24


@pytest.mark.parametrize("name", TASKS)
def test_seeds_of_a_builtin_task_differ_in_their_weights(name, small_sets):
    build = TASKS[name]().model
    with torch.random.fork_rng(devices=[]):
        weights = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            weights.append(torch.cat([param.detach().flatten() for param in build().parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", TASKS)
def test_members_of_a_builtin_task_start_alike_and_part_by_their_lrs(name, small_sets):
    task = cifar10(num_train=128, num_test=8) if name == "cifar10" else TASKS[name]()
    found = vs.sweep(task, lrs=[1e-12, 1e-3], num_steps=2)
    assert np.isfinite(found.train_loss).all()
    assert found.train_loss[0, 0] == found.train_loss[0, 1]
    assert found.train_loss[1, 0] != found.train_loss[1, 1]


@pytest.mark.parametrize(
    ("name", "num_samples", "metric"),
    [
        ("digits", 360, "accuracy"),
        ("digits-cnn", 360, "accuracy"),
        ("mnist", IDX_SIZES["t10k"], "accuracy"),
        ("fashion-mnist", IDX_SIZES["t10k"], "accuracy"),
        ("cifar10", 40, "accuracy"),
        ("shakespeare", 256, "accuracy"),
        ("tanh-regression", 300, "mse"),
    ],
)
def test_a_builtin_task_is_validated_on_all_that_is_held_out_the_same_each_time(name, num_samples, metric, small_sets):
    task = TASKS[name]()
    first, again = (list(task.val_batches) for _ in range(2))
    assert sum(len(inputs) for inputs, _ in first) == num_samples
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert task.metrics.keys() == {metric}
    inputs, targets = first[0]
    with torch.no_grad():
        assert task.metrics[metric](task.model().eval()(inputs), targets).shape == ()


def test_characters_are_held_out_that_no_training_batch_shows(small_sets):
    task = TASKS["shakespeare"]()
    exclamation = 0  # it comes first in the alphabet, and only at the end of the text
    assert not any((inputs == exclamation).any() or (targets == exclamation).any() for inputs, targets in task.batches)
    assert task.val_batches[-1][1][-1, -1] == exclamation


def test_the_validation_batches_of_photographs_are_not_augmented(small_sets):
    inputs = torch.cat([inputs for inputs, _ in cifar10().val_batches])
    assert torch.equal(inputs, datasets.cifar10_data().test_inputs)


def test_some_photographs_are_the_same_ones_each_time_and_part_of_more(small_sets):
    some, again, more = (cifar10(num_train=num, num_test=8).batches for num in (130, 130, 150))
    assert len(some.inputs) == len(some.targets) == 130
    assert torch.equal(some.inputs, again.inputs)
    assert torch.equal(some.inputs, more.inputs[:130])
    data = datasets.cifar10_data()
    rows = [int((data.train_inputs == image).flatten(1).all(dim=1).nonzero()) for image in some.inputs]
    assert len(set(rows)) == 130
    assert rows != sorted(rows)
    assert torch.equal(some.targets, data.train_targets[rows])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 127}, "`num_train` must be from 128 to 200; got 127"),
        ({"num_train": 201}, "`num_train` must be from 128 to 200; got 201"),
        ({"num_test": 0}, "`num_test` must be from 1 to 40; got 0"),
    ],
)
def test_a_number_of_photographs_that_is_not_there_is_told(options, message, small_sets):
    with pytest.raises(ValueError, match=message):
        cifar10(**options)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "shakespeare"])
def test_data_that_have_not_been_fetched_are_told_with_the_command(name, monkeypatch, tmp_path):
    forget()
    monkeypatch.setenv("VECSWEEP_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"The data set '{name}' is not in .*vecsweep data {name}"):
        load_task(name)


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
        ("digit", r"must be one of the built-in ones, digits, .*; got 'digit'\. Did you mean 'digits'\?"),
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
        ("own_task.py:make_of_width", "must be a function without arguments; it needs width, depth"),
    ],
)
def test_a_name_that_leads_to_no_task_is_told_with_what_to_do(name, message, folder):
    with pytest.raises(ValueError, match=message):
        load_task(name)


def test_an_error_inside_the_users_function_comes_through_as_it_is(folder):
    with pytest.raises(KeyError, match="missing"):
        load_task("own_task.py:mistaken")
