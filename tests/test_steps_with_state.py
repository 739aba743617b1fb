"""Steps that keep count where few do, catch errors, or call what PyTorch compiles, beside a plain loop."""

import argparse
import array
import collections
import contextlib
import multiprocessing
import queue
import random
import sys
import threading
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vecsweep.kernels._compiled import compiled_run_through

import vecsweep as vs

NUM_STEPS = 12
LRS = [0.01, 0.05, 0.2]
FALLS_BACK = "one after another"


def numbers(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


BATCHES = [(numbers(8, 4, seed=i), numbers(8, 2, seed=9 + i)) for i in range(3)]


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def train_plainly(make, lr):
    """The oracle: an ordinary loop over a model and a step of its own."""
    model, step = make()
    optimizer = sgd(model.parameters())
    optimizer.param_groups[0]["lr"] = lr
    torch.manual_seed(0)
    random.seed(0)
    losses = []
    for t in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = step(model, BATCHES[t % len(BATCHES)])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def assert_equal(runs, make):
    for i, lr in enumerate(LRS):
        losses, weights = train_plainly(make, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        torch.testing.assert_close(dict(runs.model(i).state_dict()), dict(weights), rtol=1e-9, atol=1e-12)


def sweep(make, engine="auto"):
    model, step = make()
    task = vs.Task(model, BATCHES, training_step=step, optimizer=sgd)
    return vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, divergence_factor=None, engine=engine, progress=False)


def counting_by(count):
    """A step that warms up over ten passes, as a count says that goes up by one with each."""
    return make_net(), lambda model, batch: mse(model, batch) * min(1.0, count() / 10)


def by_namespace():
    args = argparse.Namespace(step=0)

    def count():
        args.step += 1
        return args.step

    return counting_by(count)


def by_user_dict():
    config = collections.ChainMap(collections.UserDict(step=0))

    def count():
        config.maps[0]["step"] += 1
        return config["step"]

    return counting_by(count)


def by_shared_value():
    value = multiprocessing.Value("i", 0)

    def count():
        value.value += 1
        return value.value

    return counting_by(count)


def by_array():
    numbers_seen = array.array("d", [0.0])

    def count():
        numbers_seen[0] += 1
        return numbers_seen[0]

    return counting_by(count)


def by_queue():
    waiting = queue.Queue()

    def count():
        waiting.put(1)
        return waiting.qsize()

    return counting_by(count)


def by_thread():
    local = threading.local()

    def count():
        local.step = getattr(local, "step", 0) + 1
        return local.step

    return counting_by(count)


def by_module_imported_within():
    settings = types.ModuleType("settings_of_steps")
    settings.step = 0
    sys.modules["settings_of_steps"] = settings

    def count():
        import settings_of_steps

        settings_of_steps.step += 1
        return settings_of_steps.step

    return counting_by(count)


COUNTERS = [
    by_namespace,
    by_user_dict,
    by_shared_value,
    by_array,
    by_queue,
    by_thread,
    by_module_imported_within,
]


@pytest.mark.parametrize("engine", ["auto", "sequential"])
@pytest.mark.parametrize("make", COUNTERS)
def test_count_of_passes_is_each_members_own_wherever_it_is_kept(make, engine):
    with pytest.warns(UserWarning, match="keeps something for the next") if engine == "auto" else warnings_as_errors():
        runs = sweep(make, engine)
    assert_equal(runs, make)


@contextlib.contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_count_of_passes_outside_is_what_it_was_after_a_sweep():
    args, waiting, numbers_seen = argparse.Namespace(step=3), queue.Queue(), array.array("d", [1.0])

    def step(model, batch):
        args.step += 1
        waiting.put(args.step)
        numbers_seen[0] += 1
        return mse(model, batch)

    with pytest.warns(UserWarning, match=FALLS_BACK):
        sweep(lambda: (make_net(), step))
    assert (args.step, waiting.qsize(), numbers_seen[0]) == (3, 0, 1.0)


def test_draws_of_pythons_own_generator_are_no_count_of_passes():
    def make():
        return make_net(), lambda model, batch: mse(model, batch) * random.uniform(0.5, 1.5)

    runs = sweep(make)
    assert runs.engine.startswith("vectorized")
    assert_equal(runs, make)


def weighted(take):
    """A step that weights its loss by a number taken out of it, and by another where that fails."""

    def step(model, batch):
        loss = mse(model, batch)
        try:
            weight = 1.0 if take(loss) else 0.3
        except Exception:
            weight = 0.1
        return loss * weight

    return lambda: (make_net(), step)


def suppressed(model, batch):
    loss, weight = mse(model, batch), 1.0
    with contextlib.suppress(RuntimeError):
        weight = float(loss.detach().numpy())
    return loss * weight


@pytest.mark.parametrize(
    "make",
    [
        weighted(lambda loss: loss.item() > 1),
        weighted(lambda loss: loss > 1),
        weighted(lambda loss: float(loss.detach()) > 1),
        lambda: (make_net(), suppressed),
    ],
    ids=["item", "bool", "float", "numpy"],
)
def test_error_that_only_batching_raises_is_told_also_where_the_step_catches_it(make):
    with pytest.warns(UserWarning, match=FALLS_BACK):
        runs = sweep(make)
    assert_equal(runs, make)


def test_metric_that_catches_errors_is_measured_as_in_an_ordinary_pass():
    def scale(outputs, targets):
        try:
            return float(outputs.abs().mean())
        except RuntimeError:
            return 0.0

    model = make_net()
    task = vs.Task(model, BATCHES, F.mse_loss, optimizer=sgd, val_batches=BATCHES, metrics={"scale": scale})
    with pytest.warns(UserWarning, match="evaluated one after another"):
        runs = vs.sweep(task, lrs=LRS, epochs=1, progress=False)
    for i in range(len(LRS)):
        trained = runs.model(i).eval()
        expected = np.mean([trained(inputs).abs().mean().item() for inputs, _ in BATCHES])
        np.testing.assert_allclose(runs.metrics["val_scale"][-1, i], expected, rtol=1e-6)  # a float of Python


class LooksBack(nn.Module):
    """Keeps what it computed, whose gradient the next step reads."""

    def __init__(self):
        super().__init__()
        self.net, self.last = make_net(), None


def looks_back(model, batch):
    hidden = model.net[0](batch[0])
    hidden.retain_grad()
    extra = 0.0 if model.last is None else model.last.grad.square().sum() * hidden.mean()
    model.last = hidden
    return F.mse_loss(model.net[1:](hidden), batch[1]) + extra


def test_step_that_reads_what_the_backward_pass_before_it_left_trains_as_in_a_plain_loop():
    def make():
        return LooksBack(), looks_back

    with pytest.warns(UserWarning, match="keeps something for the next"):
        runs = sweep(make)
    assert_equal(runs, make)


def conditional(model, batch):
    outputs = model(batch[0])
    return F.mse_loss(torch.cond(outputs.sum() > 0, torch.sin, torch.cos, (outputs,)), batch[1])


class Branching(nn.Module):
    """A branch of layers, whose weights the condition's functions refer to."""

    def __init__(self):
        super().__init__()
        self.a, self.b = make_net(), make_net()

    def forward(self, inputs):
        return torch.cond(inputs.sum() > 0, self.a, self.b, (inputs,))


def assert_cond_works():
    point = torch.ones(3, requires_grad=True)
    torch.cond(torch.tensor(True), torch.sin, torch.cos, (point,)).sum().backward()
    torch.testing.assert_close(point.grad, torch.cos(torch.ones(3)))


@pytest.mark.parametrize(
    "make", [lambda: (make_net(), conditional), lambda: (Branching(), mse)], ids=["step", "layers"]
)
def test_cond_trains_as_in_a_plain_loop_and_works_after_it(make):
    torch._dynamo.reset()  # as in a process in which nothing was compiled yet
    with pytest.warns(UserWarning, match="`cond`, whose functions PyTorch compiles"):
        runs = sweep(make)
    assert_cond_works()
    assert_equal(runs, make)


class Counting:
    """A backend of torch.compile that counts what it is asked to compile, and runs it as it was written."""

    def __init__(self):
        self.num_compiled = 0

    def __call__(self, graph, inputs):
        self.num_compiled += 1
        return graph


def test_function_that_a_step_has_compiled_is_still_compiled_after_a_sweep():
    backend = Counting()

    @torch.compile(backend=backend)
    def compiled(inputs):
        return inputs.sin() + 1

    runs = sweep(
        lambda: (make_net(), lambda model, batch: F.mse_loss(model(batch[0]) + compiled(batch[0])[:, :2], batch[1]))
    )
    assert runs.engine.startswith("vectorized")
    before = backend.num_compiled
    compiled(torch.ones(3))
    assert backend.num_compiled == before + 1


def test_sweeps_that_overlap_in_threads_leave_the_compiler_as_it_was():
    backend = Counting()
    first, second = compiled_run_through(), compiled_run_through()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # before the one that came later
    second.__exit__(None, None, None)
    torch.compile(lambda inputs: inputs.sin() + 2, backend=backend)(torch.ones(3))
    assert backend.num_compiled == 1


def test_gradients_of_a_net_beside_the_model_are_each_members_own_and_nobodys_after_a_sweep():
    nets = []

    def make():
        torch.manual_seed(3)
        critic = nn.Linear(2, 1).double()
        nets.append(critic)

        def step(model, batch):
            fakes = model(batch[0])
            for p in critic.parameters():
                p.requires_grad_(True)
            (critic(fakes.detach()).mean() - critic(batch[1]).mean()).backward()
            with torch.no_grad():
                for p in critic.parameters():
                    p.sub_(0.01 * p.grad)  # all gradients until now, as of momentum
            for p in critic.parameters():
                p.requires_grad_(False)
            return -critic(fakes).mean()

        return make_net(), step

    with pytest.warns(UserWarning, match=FALLS_BACK):
        runs = sweep(make)
    assert all(p.grad is None for p in nets[0].parameters())
    assert_equal(runs, make)


class OfPlaces(nn.Module):
    """Looks one entry up: the same one in each pass, or one that the member's weights choose."""

    def __init__(self, *, is_own):
        super().__init__()
        self.net, self.is_own = make_net(), is_own
        self.table = nn.Embedding(5, 4).double()

    def forward(self, inputs):
        place = (self.net[0].weight.detach().sum() * 10).long().abs() % 5 if self.is_own else torch.tensor(3)
        return self.net(inputs + self.table(place))


@pytest.mark.parametrize("is_own", [False, True])
def test_embedding_of_a_single_entry_is_batched(is_own):
    def make():
        torch.manual_seed(1)
        return OfPlaces(is_own=is_own), mse

    runs = sweep(make)
    assert runs.engine.startswith("vectorized")
    assert_equal(runs, make)


def test_sweep_in_anomaly_mode_is_traced_and_says_nothing_of_errors():
    with torch.autograd.set_detect_anomaly(True), warnings_as_errors():
        runs = sweep(lambda: (make_net(), mse))
        assert torch.is_anomaly_enabled()
    assert "traced" in runs.engine
    assert_equal(runs, lambda: (make_net(), mse))
