"""What members and seeds cost the host, counted rather than timed, and that sharing batches by seed changes no number.

Counted are the lines and calls of Python that run, each turn of a loop among them: the same on a busy machine and an
idle one.
"""

import gc
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep._engine.run import train
from vecsweep.execution import Execution
from vecsweep.plan import Member, Plan

BATCHES = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])) for _ in range(4)]
KINDS = {
    "plain": {},
    "evaluated": {"val_every": 8},
    "stopped": {"val_every": 8, "patience": 100},
    "fed": {"val_every": 8, "schedules": {"plateau": vs.schedules.plateau()}},
    "several seeds": {"seeds": 4},
}


def count_work(run):
    """Return how many lines and calls of Python a call runs."""
    num_events, before = 0, sys.gettrace()
    gc.collect()
    gc.disable()  # what it would call falls now on this run and now on that

    def trace(frame, event, _):
        nonlocal num_events
        num_events += event in ("line", "call")
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
        gc.enable()
    return num_events


def sweep(num_members, num_steps=32, *, seeds=1, **how):
    model = nn.Linear(3, 2)
    task = vs.Task(
        model, BATCHES, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1), val_batches=BATCHES[:1]
    )
    lrs = np.geomspace(1e-4, 1e-2, num_members // seeds)
    options = {"engine": "vectorized", "compile": False, "chunk_size": num_members, "progress": False}
    return vs.sweep(task, lrs=lrs, num_steps=num_steps, seeds=seeds, **options, **how)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_host_does_grows_at_most_linearly_with_members(kind):
    for n in (16, 64, 256):  # what is imported and filled once is not counted
        sweep(n, **KINDS[kind])
    few, some, many = (count_work(lambda n=n: sweep(n, **KINDS[kind])) for n in (16, 64, 256))
    # Half as much again for what fills on the way; a list of the seeds at each look at one costs ten times as much.
    assert many - some < 1.5 * (256 - 64) / (64 - 16) * (some - few)


@pytest.mark.parametrize("kind", ["plain", "stopped", "several seeds"])
def test_a_step_takes_the_host_as_much_for_many_members_as_for_few(kind):
    def work_of_steps(num_members):
        short, long = (count_work(lambda n=n: sweep(num_members, n, **KINDS[kind])) for n in (48, 96))
        return long - short

    for n in (16, 128):
        sweep(n, 96, **KINDS[kind])
    few, many = work_of_steps(16), work_of_steps(128)
    assert many < few + 128 - 16  # not even one more for each of the members, in 48 steps


def build(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def batches_of(seed, *, breaks_at=None):
    """Batches of a seed's own; one of them is NaN, if asked, so that all its members end there."""
    generator = torch.Generator().manual_seed(100 + seed)
    batches = [(torch.randn(7, 6, generator=generator), torch.randint(3, (7,), generator=generator)) for _ in range(48)]
    if breaks_at is not None:
        batches[breaks_at][0].fill_(torch.nan)
    return batches


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean()


def adamw(params):
    return torch.optim.AdamW(params, lr=0.01)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("breaking", [None, 1])
def test_seeds_with_uneven_numbers_of_members_in_a_chunk_equal_a_plain_loop(breaking):
    def own(seed):
        return batches_of(seed, breaks_at=20 if seed == breaking else None)

    task = vs.Task(lambda: build(torch.initial_seed()), own, F.cross_entropy, adamw)
    seeds = [1, 0, 1, 2, 1, 0, 1]  # once the members of seed 1 are gone, fewer than half are left
    lrs = np.geomspace(1e-3, 1e-2, len(seeds))
    plan = Plan(
        tuple(Member(float(lr), seed) for lr, seed in zip(lrs, seeds, strict=True)), {"lr": np.tile(lrs, (48, 1))}
    )
    how = Execution(engine="vectorized", compile=False, chunk_size=len(seeds), divergence_factor=None)
    with pytest.warns(RuntimeWarning, match="of seed 1 diverged at step 20") if breaking else nullcontext():
        record = train(task, plan, how)
    assert record.engine.startswith("vectorized, traced")
    for i, (lr, seed) in enumerate(zip(lrs, seeds, strict=True)):
        end = 20 if seed == breaking else 48
        assert record.diverged_at[i] == (20 if seed == breaking else -1)
        expected = stock.train_in_place(build(seed), task, lr, end, seed=seed, batches=own(seed))
        np.testing.assert_allclose(record.loss[:end, i], expected.losses, rtol=1e-9)
        if seed != breaking:
            model = record.learners[seed].model_of(record.states[i])
            for name, value in expected.model.state_dict().items():
                torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_metrics_on_the_batches_of_each_seed_equal_those_of_a_plain_loop():
    task = vs.Task(
        lambda: build(torch.initial_seed()), batches_of, F.cross_entropy, adamw, metrics={"accuracy": accuracy}
    )
    runs = vs.sweep(
        task, lrs=[1e-3, 1e-2, 3e-2], seeds=3, num_steps=20, train_metrics=True, engine="vectorized", chunk_size=9
    )
    for i, member in enumerate(runs.members):
        model = stock.train_in_place(
            build(member.seed), task, member.lr, 20, seed=member.seed, batches=batches_of(member.seed)
        ).model.eval()
        expected = np.mean([float(accuracy(model(x), y)) for x, y in batches_of(member.seed)])
        np.testing.assert_allclose(runs.metrics["train_accuracy"][-1, i], expected, rtol=1e-9)
