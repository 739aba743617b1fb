"""Torch's kernel in the place of Adam's formula: the same numbers as torch.optim, written over the old state."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vecsweep.kernels.updates import FUSED, UPDATES, formulas_only
from vecsweep.kernels.updates._fused_adam import FUSED_ADAM, step_, suits

import vecsweep as vs
from vecsweep._engine.graphs import lowering

SHAPES = ((5, 4), (5,), (), (3, 5))
NUM_MEMBERS = 3


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


VARIANTS = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adam with a penalty": (torch.optim.Adam, {"weight_decay": 0.1}),
    "amsgrad": (torch.optim.AdamW, {"amsgrad": True, "betas": (0.5, 0.9)}),
    "maximize": (torch.optim.Adam, {"maximize": True, "eps": 1e-3}),
}
VARIED = {
    "lr": {"lr": numbers(0.1, 0.01, 1.0)},
    "all": {
        "lr": numbers(0.1, 0.01, 1.0),
        "betas": (numbers(0.9, 0.5, 0.0), numbers(0.999, 0.9, 0.5)),
        "eps": numbers(1e-8, 1e-4, 1e-2),
        "weight_decay": numbers(0.0, 0.01, 0.3),
    },
}


@pytest.mark.parametrize("varied", VARIED)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernel_steps_each_member_as_its_own_stock_optimizer(variant, varied):
    optimizer_class, options = VARIANTS[variant]
    generator = torch.Generator().manual_seed(0)

    def draw():
        return [torch.randn(NUM_MEMBERS, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]

    params = draw()
    own = [[nn.Parameter(p[i].clone()) for p in params] for i in range(NUM_MEMBERS)]
    hyper = VARIED[varied]
    optimizers = []
    for i, of_member in enumerate(own):
        mine = {k: tuple(v[i].item() for v in value) if k == "betas" else value[i].item() for k, value in hyper.items()}
        optimizers.append(optimizer_class(of_member, **options | mine))
    group = optimizers[0].param_groups[0]
    update = UPDATES[optimizer_class]
    taken = {name: group[name] for name in update.hyperparameters} | hyper
    states = [update.init(p, **taken) for p in params]
    for step in range(4):
        grads = draw()
        is_stepped = torch.tensor([True, step != 2, True])  # a member that waits, and goes on
        before = [(p.clone(), {k: v.clone() for k, v in s.items()}) for p, s in zip(params, states, strict=True)]
        for i in range(NUM_MEMBERS):
            for p, g in zip(own[i], grads, strict=True):
                p.grad = g[i].clone()
            if is_stepped[i]:
                optimizers[i].step()
        new, of_new = FUSED_ADAM.apply_all(params, grads, states, is_stepped, **taken)
        for (p, s), old, state in zip(before, params, states, strict=True):
            assert torch.equal(p, old), "what is given is not changed"
            assert all(torch.equal(v, state[k]) for k, v in s.items())
        params, states = new, of_new
        for state in states:
            state["step"] = torch.where(is_stepped, state["step"], state["step"] - 1)
        for i in range(NUM_MEMBERS):
            for p, mine in zip(params, own[i], strict=True):
                torch.testing.assert_close(p[i], mine.detach(), rtol=1e-12, atol=1e-12)


def test_kernel_is_for_few_members_or_large_ones_of_one_dtype_on_a_cpu():
    def tensors(num_members, *shape, **options):
        return [torch.empty(num_members, *shape, **options)] * 6

    assert suits(tensors(8, 64, 64), tensors(8, 64, 64))
    assert suits(tensors(1024, 300, 300, device="cpu"), tensors(1024, 300, 300))
    assert not suits(tensors(4096, 4, 4), tensors(4096, 4, 4)), "calls would take longer than operators"
    assert not suits(tensors(8, 64, 64, dtype=torch.bfloat16), tensors(8, 64, 64, dtype=torch.bfloat16))
    assert not suits(tensors(8, 64, 64, device="meta"), tensors(8, 64, 64, device="meta"))
    assert not suits(tensors(8, 64, 64), tensors(8, 64, 64, dtype=torch.float64))
    assert not suits([t.transpose(1, 2) for t in tensors(8, 64, 32)], tensors(8, 32, 64))
    with formulas_only():
        assert UPDATES[torch.optim.AdamW].kernel_for(tensors(8, 64, 64), tensors(8, 64, 64)) is None


def make_task(num_batches=5):
    torch.manual_seed(0)
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(num_batches)]
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    return vs.Task(model, batches, F.cross_entropy, optimizer=torch.optim.AdamW(model.parameters()))


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are run, as they are made."""
    made, lower = [], lowering._lower

    def noted(*arguments):
        lowered = lower(*arguments)
        made.append([node.target for node in lowered.run.__self__.graph.nodes])
        return lowered

    monkeypatch.setattr(lowering, "_lower", noted)
    monkeypatch.setattr(lowering, "_KEPT", type(lowering._KEPT)())
    return made


@pytest.mark.parametrize(
    ("options", "is_in_place"),
    [({}, True), ({"max_grad_norm": 0.1}, True), ({"record": ["update_norm"]}, False)],
    ids=["plain", "clipped", "old parameters are read once more"],
)
def test_kernel_writes_over_the_old_state_where_nobody_reads_it_later(graphs, options, is_in_place):
    task, lrs = make_task(), [1e-3, 1e-2, 1e6]
    runs = vs.sweep(task, lrs=lrs, num_steps=40, engine="vectorized", divergence_factor=4.0, **options)
    (targets,) = graphs
    assert (step_ in targets) is is_in_place
    assert (next(iter(FUSED)) in targets) is not is_in_place
    assert runs.members[2].diverged_at is not None, "and harms no other"
    for i, lr in enumerate(lrs[:2]):
        model = copy.deepcopy(task.model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        for step in range(40):
            inputs, targets = task.batches[step % 5]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            if "max_grad_norm" in options:
                nn.utils.clip_grad_norm_(model.parameters(), options["max_grad_norm"])
            optimizer.step()
            np.testing.assert_allclose(runs.train_loss[step, i], loss.item(), rtol=1e-9)


def test_compiler_is_given_the_formula(monkeypatch):
    given = []

    def compile_graph(graph, is_wanted):
        given.extend(node.target for part in (graph, *graph.children()) for node in part.graph.nodes)
        return graph.forward

    monkeypatch.setattr("vecsweep._engine.ways.program.compile_graph", compile_graph)
    runs = vs.sweep(make_task(), lrs=[1e-3, 1e-2], num_steps=40, engine="vectorized", compile=True, chunk_size=2)
    assert given
    assert not FUSED.keys() & set(given)
    assert step_ not in given
    assert "compiled" in runs.engine
