"""Eight policies of the field on CIFAR-10, three seeds each, 30 epochs, in one pass: what they reach, and in what time.

The run is kept in build/policies as it goes: one that is cut short goes on where it stood, and its time is that of all.
Published single runs reached 83.3 % with a constant learning rate and about 85 % with an exponential one.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Record
from torch import nn

import vecsweep as vs
from vecsweep.cli.demos.policies import make_policies
from vecsweep.tasks import cifar10

EPOCHS, SEEDS = 30, 3
FOLDER = Path(__file__).parent.parent / "build" / "policies"


def _tiny_task() -> vs.Task:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    batches = [(torch.rand(4, 3, 32, 32), torch.randint(10, (4,))) for _ in range(2)]
    metrics = {"accuracy": lambda y, targets: (y.argmax(1) == targets).double().mean()}
    made = vs.Task(model, batches, F.cross_entropy, lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    return replace(made, val_batches=batches, metrics=metrics)


def bench_policies(record: Record, tiny: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Train all of them, once."""
    on_gpu = torch.cuda.is_available()
    if not (tiny or on_gpu or request.config.option.full):
        pytest.skip("it takes a GPU; asked for by --full")
    try:
        task = _tiny_task() if tiny else cifar10()
    except (OSError, ValueError) as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")
    runs = vs.sweep(
        task,
        lrs=[1.0],
        schedules=make_policies(),
        seeds=1 if tiny else SEEDS,
        epochs=1 if tiny else EPOCHS,
        device="cuda" if on_gpu else None,
        progress=False,
        checkpoint=(tmp_path if tiny else FOLDER),
        checkpoint_every="1min",
    )
    for standing in runs.ranking("val_accuracy").standings:
        record(
            name=standing.setting.schedule,
            val_accuracy=standing.mean,
            num_seeds=1 if tiny else SEEDS,
            whole_run_s=runs.duration_s,
            engine=runs.engine,
        )
