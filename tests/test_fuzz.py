"""Any argument whatever: a call succeeds, or says what is wrong with it before any work; files likewise.

`make soak` tries many more than `make test`.
"""

import os
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import vecsweep as vs

NUM_CALLS = int(os.environ.get("VECSWEEP_FUZZED_CALLS", "300"))
NUM_FILES = int(os.environ.get("VECSWEEP_FUZZED_FILES", "200"))
REFUSALS = (TypeError, ValueError, ImportError, IndexError)  # the last where a member is asked for

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
NUMBERS = st.one_of(st.integers(-3, 6), st.integers(), st.floats(), st.text(max_size=3))
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
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    yield
    os.chdir(before)


# Steps that a call may take before it is known to be refused: none. What fails after them is an error of the task's.
AFTER_WORK = "No learning rate trains|must be a tensor|diverged"


def assert_works_or_is_refused(call, given):
    before = WORK.num
    try:
        call(**given)
    except REFUSALS as error:
        if WORK.num > before:
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
    assert_works_or_is_refused(call, {argument: data.draw(ANYTHING) for argument in chosen})
