"""Any argument whatever: a call succeeds, or says what is wrong with it before any work; files likewise.

`make soak` tries many more than `make test`.
"""

import contextlib
import io
import json
import os
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import vecsweep as vs
from vecsweep.suggest import suggest

NUM_CALLS = int(os.environ.get("VECSWEEP_FUZZED_CALLS", "300"))
NUM_FILES = int(os.environ.get("VECSWEEP_FUZZED_FILES", "200"))
REFUSALS = (TypeError, ValueError, ImportError)
OF_METHODS = (IndexError, OSError)  # of a member, and of a file

ODD = [
    *(None, True, False, -1, 0, 1, 2, 3, 0.5, -0.5, 1.5, float("nan"), float("inf"), 1e308, 1e-320, 10**30, -(10**30)),
    *("", "x", "linear", "auto", "xpu", "cuda:99", "meta", "0.1", "val_loss", "train_loss", b"x", 1j),
    *([], [1], [0.1, 0.2], [None], ["a"], [[1]], [True], [float("nan")], (), (1, 2), {}, {"a": 1}, {1: 2}, set(), {3}),
    *(range(3), Decimal("0.1"), Fraction(1, 3), object(), int, nn.Linear, np, slice(3), Ellipsis, NotImplemented),
    *(np.uint8(3), np.float32(0.1), np.bool_(True), np.array(3), np.array([0.1, 0.2]), np.array(["a"]), np.empty(0)),
    *(np.array([[1.0]]), np.array([None]), np.datetime64("2020-01-01"), torch.tensor(0.1)),
    *(
        torch.tensor(2),
        torch.ones(2),
        torch.tensor(True),
        torch.ones(0),
        torch.device("cpu"),
        torch.float32,
        nn.Linear(1, 1),
    ),
    *({"lr": [0.1]}, {"momentum": [0.5]}, {"momentum": 0.5}, {"momentum": ["a"]}, {"momentum": []}, {"momentum": None}),
    *({"a": lambda p: p}, {"a": "cosine"}, {"a": 3}, ["cosine"], ["cosine", "cosine"], [lambda p: "x"], "cosine"),
    *(lambda: 0, lambda *_: None, lambda *_: 1, lambda *_: [0], lambda *_: "x"),
]
# None between, which would be a number of steps that somebody may mean, and take as long.
INTEGERS = st.one_of(st.integers(-3, 6), st.integers(min_value=10**10), st.integers(max_value=-3))
NUMBERS = st.one_of(INTEGERS, st.floats(), st.text(max_size=3))
ANYTHING = st.one_of(st.sampled_from(ODD), NUMBERS, st.lists(NUMBERS, max_size=3), st.binary(max_size=3))


class Work:
    """How often something was computed; a run cannot set that back."""

    def __init__(self):
        self.path = os.memfd_create("work")

    def note(self):
        os.write(self.path, b".")

    @property
    def num(self):
        return os.fstat(self.path).st_size


WORK = Work()
AFTER_WORK = "No learning rate trains"  # an answer, rather than a refusal


def loss(outputs, targets):
    WORK.note()
    return F.mse_loss(outputs, targets)


def make_task(**options):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    batches = [(torch.ones(2, 2) * k, torch.zeros(2, 1)) for k in (1, 2)]
    options = {"val_batches": batches, "metrics": {"error": F.l1_loss}} | options
    return vs.Task(model, batches, loss, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)


TASK = make_task()
EXECUTION = list(vs.Execution.__annotations__)
FEW = {"num_steps": 1, "progress": False}
VERBS = {
    "sweep": (
        lambda **given: vs.sweep(**({"task": TASK, "lrs": [0.1]} | FEW | given)),
        [
            "task",
            "lrs",
            "schedules",
            "seeds",
            "vary",
            "num_steps",
            "epochs",
            "until",
            "val_every",
            "train_metrics",
            "patience",
            "prune",
            "monitor",
            "mode",
            "tensorboard",
        ],
    ),
    "range_test": (
        lambda **given: vs.range_test(**({"task": TASK, "num_lrs": 2} | FEW | given)),
        ["task", "start_lr", "end_lr", "num_lrs", "num_steps", "seeds", "method", "spacing", "evaluate"],
    ),
    "find_lr": (
        lambda **given: vs.find_lr(**({"task": TASK, "num_steps": 8, "budget": 0.5, "progress": False} | given)),
        [
            "task",
            "epochs",
            "num_steps",
            "schedule",
            "schedules",
            "vary",
            "seeds",
            "budget",
            "tolerance",
            "monitor",
            "mode",
        ],
    ),
    "check": (
        lambda **given: vs.check(**({"task": TASK, "lrs": [0.1]} | FEW | given)),
        ["task", "lrs", "num_steps", "seeds"],
    ),
}
TAKES_EXECUTION = list(VERBS)
VERBS["Task"] = (
    lambda **given: make_task(**given),
    ["val_batches", "metrics", "batch_weight", "training_step"],
)


RUNS = vs.sweep(TASK, lrs=[0.1, 0.2], seeds=2, num_steps=2, progress=False)
FOUND = vs.range_test(TASK, num_lrs=4, num_steps=2, progress=False)
METHODS = {
    RUNS.plot: "ax kind metric mode",
    RUNS.final: "metric",
    RUNS.best: "metric mode",
    RUNS.basin: "metric mode tolerance position",
    RUNS.bands: "metric",
    RUNS.ranking: "metric mode confidence",
    RUNS.curve: "name",
    RUNS.select: "lr schedule seed member",
    RUNS.model: "i",
    RUNS.save: "path",
    RUNS.to_csv: "path",
    FOUND.suggest: "rule smoothing horizon schedule",
    FOUND.plot: "ax kind metric mode",
    vs.load: "path",
}
VERBS |= {f"{call.__qualname__}": (call, names.split()) for call, names in METHODS.items()}
VERBS |= {
    "extend": (lambda **given: RUNS.extend(**({"num_steps": 1} | given)), ["num_steps", "epochs"]),
    "branch": (
        lambda **given: RUNS.branch(**({"i": 0, "num_steps": 1} | given)),
        ["i", "lrs", "schedules", "vary", "num_steps", "epochs"],
    ),
    "save_model": (lambda **given: RUNS.save_model(**({"i": 0, "path": "model"} | given)), ["i", "path"]),
    "suggest": (
        lambda **given: suggest(**({"lrs": [0.1, 0.2, 0.3], "losses": [3, 2, 1]} | given)),
        ["lrs", "losses", "rule", "smoothing", "is_trimmed"],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def in_a_folder_of_its_own(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    yield
    os.chdir(before)


def assert_works_or_is_refused(call, given, also=()):
    before = WORK.num
    try:
        call(**given)
    except (*REFUSALS, *also) as error:
        if WORK.num > before and not re.search(AFTER_WORK, str(error)):
            raise AssertionError(f"refused only after {WORK.num - before} passes: {error}") from error


quietly = pytest.mark.filterwarnings("ignore")
fuzzed = settings(
    deadline=None,
    max_examples=NUM_CALLS,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@quietly
@fuzzed
@given(data=st.data())
def test_verb_works_or_refuses_any_arguments_before_any_work(data):
    name = data.draw(st.sampled_from(list(VERBS)))
    call, names = VERBS[name]
    names = names + EXECUTION if name in TAKES_EXECUTION else names
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    given = {argument: data.draw(ANYTHING) for argument in chosen}
    assert_works_or_is_refused(call, given, OF_METHODS if name not in TAKES_EXECUTION else ())


# Files.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    return [RUNS.save(path / "runs.npz"), FOUND.save(path / "found.npz")]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=4,
)
DTYPES = st.sampled_from(["<f8", ">f8", "<f4", "<f2", "<i8", "<i4", "<u1", "?", "<c16", "<U3", "S2", "<M8[s]", "V8"])


def mutated_header(data, header):
    """A header with one of its values, or one of those within them, changed."""
    inner, key = header, data.draw(st.sampled_from(list(header)))
    while isinstance(inner[key], list) and inner[key] and data.draw(st.booleans()):
        inner, key = inner[key], data.draw(st.integers(0, len(inner[key]) - 1))
    inner[key] = data.draw(JSON)
    return header


def mutated_array(data, array):
    """An array of another shape, of another kind, or with a number changed."""
    what = data.draw(st.sampled_from(["kind", "shape", "number", "rows"]))
    if what == "kind":
        return np.zeros(array.shape, dtype=data.draw(DTYPES))
    if what == "shape":
        return np.zeros(data.draw(st.lists(st.integers(0, 4), max_size=4)))
    if what == "rows":
        return np.repeat(array, data.draw(st.integers(0, 3)), axis=0)
    changed = array.copy().ravel()
    if changed.size:
        number = data.draw(st.one_of(st.floats(), st.integers(-(2**62), 2**62)))
        with np.errstate(all="ignore"), contextlib.suppress(ValueError, OverflowError):
            changed[data.draw(st.integers(0, changed.size - 1))] = number
    return changed.reshape(array.shape)


def mutated_file(data, content):
    """The content of a file with bytes flipped, a part cut off, or one of what it holds changed."""
    how = data.draw(st.sampled_from(["bytes", "cut", "header", "array", "parts"]))
    if how == "bytes":
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 8))):
            changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        return bytes(changed)
    if how == "cut":
        first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        return content[first:last]
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file.files}
    name = data.draw(st.sampled_from(list(arrays)))
    if how == "header":
        arrays["header"] = np.array(json.dumps(mutated_header(data, json.loads(str(arrays["header"])))))
    elif how == "array":
        arrays[name] = mutated_array(data, arrays[name])
    else:
        arrays[data.draw(st.sampled_from(["metrics/x", "hyper/lr", "../lr", "/lr", "", *arrays]))] = arrays.pop(name)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


@quietly
@settings(fuzzed, max_examples=NUM_FILES)
@given(data=st.data())
def test_damaged_or_hostile_file_is_refused_or_can_be_used(saved, data):
    path = saved[0].with_name("mutated.npz")
    path.write_bytes(mutated_file(data, data.draw(st.sampled_from(saved)).read_bytes()))
    try:
        found = vs.load(path)
    except vs.ResultFileError:
        return
    repr(found)
    found.records()
    found.curve("train_loss")
    found.select(member=[0])
    with contextlib.suppress(ValueError):  # there may be nobody left to be ranked
        found.ranking("train_loss")
        found.plot()
