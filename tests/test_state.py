"""What a pass keeps for the next, in a model and outside it: every member trains as if it were alone."""

import collections
import copy
import importlib
import itertools
import os
import warnings

import numpy as np
import pytest
import stock
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import vecsweep as vs
from vecsweep._engine.caller.watch import Watch
from vecsweep.observers import Observer

LRS = (0.01, 0.03)
NUM_STEPS = 12
GENERATOR = torch.Generator().manual_seed(5)
BATCHES = [
    (
        torch.randn(8, 4, dtype=torch.float64, generator=GENERATOR),
        torch.randn(8, 2, dtype=torch.float64, generator=GENERATOR),
    )
    for _ in range(3)
]
COUNT = 0


def loss_of_pair(outputs, targets):
    return F.mse_loss(outputs, targets)


def loss_of(model, batch, factor=1.0):
    return F.mse_loss(model(batch[0]), batch[1]) * factor


def counts_in_a_closure():
    n = 0

    def step(model, batch):
        nonlocal n
        n += 1
        return loss_of(model, batch, 1 + n / 10)

    return step


def counts_in_a_global():
    global COUNT
    COUNT = 0

    def step(model, batch):
        global COUNT
        COUNT += 1
        return loss_of(model, batch, 1 + COUNT / 10)

    return step


def counts_in_a_default():
    def step(model, batch, state={"n": 0}):  # noqa: B006 - this is what is tested
        state["n"] += 1
        return loss_of(model, batch, 1 + state["n"] / 10)

    return step


def follows_a_scheduler():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def step(model, batch):
        optimizer.step()
        scheduler.step()
        return loss_of(model, batch, scheduler.get_last_lr()[0])

    return step


def trains_a_critic():
    critic = nn.Linear(2, 1).double()
    nn.init.constant_(critic.weight, 0.1)
    nn.init.zeros_(critic.bias)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.05)

    def step(model, batch):
        outputs = model(batch[0])
        optimizer.zero_grad()
        F.softplus(critic(outputs.detach())).mean().backward()
        optimizer.step()
        return (
            F.mse_loss(outputs, batch[1]) - torch.autograd.grad(critic(outputs).mean(), outputs)[0].mul(outputs).sum()
        )

    return step


def weighs_by_the_first_batch():
    weights = {}

    def step(model, batch):
        kinds = (batch[0][:, 0] > 0).long()
        if not weights:
            weights["of kinds"] = torch.bincount(kinds, minlength=2).double()
        return (weights["of kinds"][kinds][:, None] * (model(batch[0]) - batch[1]).square()).mean()

    return step


class Trainer:
    """An object whose method is the training step."""

    def __init__(self):
        self.epoch = 0
        self.warm_up = {"steps": [0]}

    def step(self, model, batch):
        self.warm_up["steps"][0] += 1
        return loss_of(model, batch, 1 + self.epoch + self.warm_up["steps"][0] / 10)

    def step_by_epoch(self, model, batch):
        return loss_of(model, batch, 1 + self.epoch)

    def batches(self):
        yield from BATCHES
        self.epoch += 1


def counts_in_an_object():
    return Trainer().step


def remembers_in_a_closure():
    remembered = []

    def step(model, batch):
        outputs = model(batch[0])
        loss = F.mse_loss(outputs, batch[1])
        if remembered:
            loss = loss + (outputs.mean(0) - remembered[0]).pow(2).sum()
        remembered[:] = [outputs.mean(0).detach()]
        return loss

    return step


class Recurrent(nn.Module):
    """A recurrent layer, whose weights PyTorch lists in an attribute, too."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 3).double(), nn.Linear(3, 2).double()

    def forward(self, x, hidden):
        outputs, hidden = self.gru(x[None], hidden)
        return self.head(outputs[0]), hidden


def hands_on_a_hidden_state():
    hidden = torch.zeros(1, len(BATCHES[0][0]), 3, dtype=torch.float64)

    def step(model, batch):
        nonlocal hidden
        outputs, after = model(batch[0], hidden)
        hidden = after.detach()
        return F.mse_loss(outputs, batch[1])

    return step


def averages_in_a_closure():
    center = torch.zeros(2, dtype=torch.float64)

    def step(model, batch):
        outputs = model(batch[0])
        loss = F.mse_loss(outputs - center, batch[1])
        center.mul_(0.9).add_(0.1 * outputs.detach().mean(0))
        return loss

    return step


class Counts(nn.Module):
    """A model that counts in a plain object."""

    class Stats:
        n = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2).double()
        self.stats = self.Stats()

    def forward(self, x):
        self.stats.n += 1
        return self.linear(x) * (1 + self.stats.n / 10)


class Remembers(nn.Module):
    """A model that uses what the pass before has computed."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2).double()
        self.last = None

    def forward(self, x):
        outputs = self.linear(x)
        y = outputs if self.last is None else outputs + (outputs.mean(0) - self.last)
        self.last = outputs.mean(0).detach()
        return y


class Codes(nn.Module):
    """Its codebook is an average of what it codes, put in the place of the last as a new parameter (VQ-VAE)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2).double()
        self.average = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
        self.codes = nn.Embedding(3, 2).double()

    def forward(self, x):
        z = self.linear(x)
        chosen = F.one_hot(torch.cdist(z, self.codes.weight).argmin(1), 3).to(z)
        coded = chosen @ self.codes.weight
        if self.training:
            self.average = nn.Parameter(0.9 * self.average + 0.1 * chosen.T @ z)
            self.codes.weight = nn.Parameter(self.average / 2)
        return z + (coded - z).detach()


class AtFirst(nn.Module):
    """Sets itself up at its first call."""

    def __init__(self):
        super().__init__()
        self.linear, self.own = nn.Linear(4, 2).double(), None

    def forward(self, x):
        if self.own is None:
            self.set_up(x)
        return self.linear(x + self.own)


class BufferAtFirst(AtFirst):
    def __init__(self):
        super().__init__()
        del self.own
        self.register_buffer("own", None)

    def set_up(self, x):
        self.own = torch.linspace(0, 1, 4, dtype=x.dtype)


class ParameterAtFirst(AtFirst):
    def set_up(self, x):
        self.own = nn.Parameter(torch.linspace(0, 1, 4, dtype=x.dtype))


class ModuleAtFirst(AtFirst):
    def set_up(self, x):
        self.norm = nn.LayerNorm(4).to(x.dtype)
        self.own = 1.5

    def forward(self, x):
        super().forward(x)
        return self.linear(self.norm(x) * self.own)


class BufferOfFirst(BufferAtFirst):
    def set_up(self, x):
        self.own = -x.mean(0)


class BufferOfWeights(BufferAtFirst):
    def set_up(self, x):
        self.own = self.linear.weight.detach().sum(0)


class AttributeOfFirst(AtFirst):
    def set_up(self, x):
        self.own = -x.mean(0)


class NumberOfFirst(AtFirst):
    def set_up(self, x):
        self.own = -float(x.mean())


class Target(nn.Module):
    """A model with a frozen average of itself."""

    def __init__(self):
        super().__init__()
        self.online = nn.Linear(4, 2).double()
        self.target = copy.deepcopy(self.online).requires_grad_(False)


def linear():
    return nn.Linear(4, 2).double()


def train_plainly(model, make_step, lr):
    """The oracle: an ordinary loop over a copy of the model."""
    model, step = copy.deepcopy(model), make_step()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for t in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = step(model, BATCHES[t % len(BATCHES)])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def sweep(model, step, engine, batches=BATCHES, **how):
    """Train in two parts, so that what is kept must be handed on; return the warnings, too."""
    task = vs.Task(model, batches, training_step=step, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS // 2, engine=engine, **how).extend(num_steps=NUM_STEPS // 2)
    return runs, [str(warning.message) for warning in caught]


CASES = {
    "closure": (linear, counts_in_a_closure, "the closure variable `n` of `counts_in_a_closure.step`"),
    "global": (linear, counts_in_a_global, "the global `COUNT`"),
    "default": (linear, counts_in_a_default, r"the default `state\['n'\]` of `counts_in_a_default.step`"),
    "object": (linear, counts_in_an_object, r"the attribute `self.warm_up\['steps'\]` of `Trainer.step`"),
    "list": (linear, remembers_in_a_closure, "the closure variable `remembered` of"),
    "scheduler": (linear, follows_a_scheduler, "the closure variable `scheduler.last_epoch` of"),
    "optimizer": (linear, trains_a_critic, "the closure variable `critic.weight` of"),
    "first batch": (linear, weighs_by_the_first_batch, r"the closure variable `weights\['of kinds'\]` of"),
    "tensor": (linear, averages_in_a_closure, "the closure variable `center` of"),
    "hidden": (Recurrent, hands_on_a_hidden_state, "the closure variable `hidden` of"),
    "stats": (Counts, lambda: loss_of, "the Python attribute `stats.n`"),
    "last": (Remembers, lambda: loss_of, "the Python attribute `last`"),
    "parameter": (Codes, lambda: loss_of, "puts a new parameter in the place of 'average'"),
}


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize(("make_model", "make_step", "name"), CASES.values(), ids=CASES.keys())
def test_state_that_a_pass_keeps_belongs_to_the_member_and_is_named(make_model, make_step, name, engine):
    torch.manual_seed(0)
    model = make_model()
    runs, messages = sweep(model, make_step(), engine)
    for i, lr in enumerate(LRS):
        losses, trained = train_plainly(model, make_step, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        for key, value in trained.state_dict().items():
            torch.testing.assert_close(runs.model(i).state_dict()[key], value, rtol=1e-9, atol=1e-12)
    if engine == "vectorized":
        with pytest.warns(match=name):
            warnings.warn(messages[0], stacklevel=1)
    else:
        assert not messages


SET_UPS = {
    BufferAtFirst: None,
    ParameterAtFirst: "registers 'own' when it is first called",
    ModuleAtFirst: "registers 'norm.bias' when it is first called",
    BufferOfFirst: "registers 'own' when it is first called",
    BufferOfWeights: "registers 'own' when it is first called",
    AttributeOfFirst: "keeps something for the next in the Python attribute `own`",
    NumberOfFirst: "keeps something for the next in the Python attribute `own`",
}


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize(("make_model", "told"), SET_UPS.items())
def test_model_that_sets_itself_up_at_its_first_call_trains_as_in_a_plain_loop(make_model, told, engine):
    torch.manual_seed(0)
    model = make_model()
    names = list(model.state_dict())
    runs, messages = sweep(model, loss_of, engine)
    for i, lr in enumerate(LRS):
        losses, trained = train_plainly(model, lambda: loss_of, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        torch.testing.assert_close(dict(runs.model(i).state_dict()), dict(trained.state_dict()), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(runs.model(i)(BATCHES[0][0]), trained(BATCHES[0][0]), rtol=1e-9, atol=1e-12)
    assert list(model.state_dict()) == names
    assert (told in messages[0]) if told and engine == "vectorized" else not messages


class Codebook(nn.Module):
    """Its codes are averages, and counted, in buffers (VQ-VAE). Weights that differ little choose alike."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2).double()
        self.register_buffer("codes", 3 * torch.randn(3, 2, dtype=torch.float64))
        self.register_buffer("counts", torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        z = self.linear(x)
        chosen = F.one_hot(torch.cdist(z, self.codes).argmin(1), 3).to(z)
        if self.training:
            self.counts.data.mul_(0.9).add_(chosen.detach().sum(0), alpha=0.1)
            self.codes.data.lerp_((chosen.T @ z).detach() / self.counts[:, None], 0.1)
        return z + (chosen @ self.codes - z).detach()


def test_codebook_that_is_averaged_in_buffers_is_batched():
    torch.manual_seed(0)
    model = Codebook()
    runs, messages = sweep(model, loss_of, "vectorized")
    assert runs.engine.startswith("vectorized")
    assert not messages
    for i, lr in enumerate(LRS):
        losses, trained = train_plainly(model, lambda: loss_of, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        torch.testing.assert_close(dict(runs.model(i).state_dict()), dict(trained.state_dict()), rtol=1e-9, atol=1e-12)


def counting_hook():
    model, calls = linear(), collections.Counter()

    def count(module, inputs):
        calls.update(["forward"])
        return inputs[0] * (1 + 0.1 * calls["forward"])

    model.register_forward_pre_hook(count)
    return model


def counting_function():
    model, calls = nn.Sequential(linear()), [0]

    def factor():
        calls[0] += 1
        return 1 + 0.1 * calls[0]

    model.factor = factor
    model.register_forward_hook(lambda module, inputs, outputs: outputs * module.factor())
    return model


@pytest.mark.parametrize("engine", ["auto", "sequential"])
@pytest.mark.parametrize("make_model", [counting_hook, counting_function])
def test_what_functions_of_a_model_count_is_the_members_own(make_model, engine):
    torch.manual_seed(0)
    model = make_model()
    runs, messages = sweep(model, loss_of, engine)
    for i, lr in enumerate(LRS):
        torch.manual_seed(0)
        losses, _ = train_plainly(make_model(), lambda: loss_of, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
    assert engine == "sequential" or "the closure variable `calls" in messages[0]
    torch.manual_seed(0)
    torch.testing.assert_close(model(BATCHES[0][0]), make_model()(BATCHES[0][0]), rtol=0, atol=0)  # it counts from 0


def test_step_that_takes_a_trained_parameter_out_is_refused_by_its_name():
    model, epoch = linear(), [0]

    def batches():
        epoch[0] += 1
        yield from BATCHES

    def step(own, batch):
        if epoch[0] == 3 and not prune.is_pruned(own):
            prune.l1_unstructured(own, "weight", amount=2)
        return loss_of(own, batch)

    with pytest.raises(ValueError, match="a step has taken out 'weight'"):
        sweep(model, step, "sequential", batches=batches)
    assert not prune.is_pruned(model)


@pytest.mark.parametrize("engine", ["auto", "sequential"])
def test_first_step_that_takes_a_trained_parameter_out_is_refused_by_its_name(engine):
    def step(own, batch):
        if not prune.is_pruned(own):
            prune.l1_unstructured(own, "weight", amount=2)
        return loss_of(own, batch)

    with pytest.raises(ValueError, match="a step has taken out 'weight'"):
        sweep(linear(), step, engine)


def test_model_of_a_member_has_what_its_passes_kept():
    runs, _ = sweep(Counts(), loss_of, "sequential")
    assert runs.model(1).stats.n == NUM_STEPS


def test_callers_state_is_as_it_was_also_after_an_exception():
    trainer = Trainer()
    sweep(linear(), trainer.step, "sequential")
    assert trainer.warm_up == {"steps": [0]}

    def fail(model, batch):
        trainer.warm_up["steps"][0] += 1
        trainer.broken = True
        if trainer.warm_up["steps"][0] == 4:
            raise RuntimeError("on purpose")
        return loss_of(model, batch)

    with pytest.raises(RuntimeError, match="on purpose"):
        sweep(linear(), fail, "sequential")
    assert vars(trainer) == {"epoch": 0, "warm_up": {"steps": [0]}}


weight = []  # named as what the step below reads of a layer


def test_global_that_has_the_name_of_an_attribute_is_left_alone():
    class Keep(Observer):
        def losses(self, step, loss, hyper):
            weight.append(step)

    step = lambda model, batch: loss_of(model, batch) + model.weight.sum()  # noqa: E731
    sweep(linear(), step, "vectorized", callbacks=[Keep()])
    assert weight[0] == 0
    assert weight[-1] >= NUM_STEPS // 2


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_what_reading_batches_changes_is_seen_by_the_steps_as_in_a_plain_loop(engine, seeds):
    trainer, model = Trainer(), linear()
    runs, messages = sweep(model, trainer.step_by_epoch, engine, trainer.batches, seeds=seeds)
    assert trainer.epoch == 0
    for i, member in enumerate(runs.members):

        def make_step():
            t = iter(range(NUM_STEPS))
            return lambda model, batch: loss_of(model, batch, 1 + next(t) // len(BATCHES))

        losses, _ = train_plainly(model, make_step, member.lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
    assert engine == "sequential" or "`self.epoch` of `Trainer.step_by_epoch`" in messages[0]


def ends_and_is_made_anew():
    """As unlabelled data are usually read: by an iterator that starts over where it ends."""
    factors = [1.0, 2.0, 3.0]
    iterator = iter(factors)

    def step(model, batch):
        nonlocal iterator
        factor = next(iterator, None)
        if factor is None:
            iterator = iter(factors)
            factor = next(iterator)
        return loss_of(model, batch, factor)

    return step


def of_an_iterator(iterator):
    return lambda model, batch: loss_of(model, batch, next(iterator))


def generated():
    yield from iter([1.0, 2.0, 3.0] * 100)


ITERATORS = {
    "cycle": lambda: of_an_iterator(itertools.cycle([1.0, 2.0, 3.0] * 10)),
    "chain": lambda: of_an_iterator(itertools.chain([1.0], [2.0, 3.0] * 100)),
    "map": lambda: of_an_iterator(map(float, [1, 2, 3] * 100)),
    "generator": lambda: of_an_iterator(generated()),
    "made anew": ends_and_is_made_anew,
}


@pytest.mark.parametrize("engine", ["auto", "sequential"])
@pytest.mark.parametrize("make_step", ITERATORS.values(), ids=ITERATORS.keys())
def test_an_iterator_that_passes_have_moved_on_is_named_once(make_step, engine):
    _, messages = sweep(linear(), make_step(), engine)
    told = [message for message in messages if "members share the closure variable `iterator`" in message]
    assert told
    assert "Let the batches bring it" in told[0]
    assert not any("The result is the same" in message for message in messages)


def test_an_iterator_that_members_share_is_named():
    factors = iter([1.0, 2.0, 3.0] * 100)
    with pytest.warns(vs.FallbackWarning, match="members share the closure variable `factors`"):
        vs.sweep(
            vs.Task(
                linear(),
                BATCHES,
                training_step=lambda model, batch: loss_of(model, batch, next(factors)),
                optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
            ),
            lrs=LRS,
            num_steps=3,
            engine="sequential",
        )


def lerp_(target, online):
    target.lerp_(online, 0.1)


def scale_and_add_to_data(target, online):
    target.data.mul_(0.9).add_(online.data, alpha=0.1)


def copy_into_data(target, online):
    target.data.copy_(0.1 * online.data + (1 - 0.1) * target.data)


def exchange_data(target, online):
    target.data = target.data * 0.9 + online.data * 0.1


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("move", [lerp_, scale_and_add_to_data, copy_into_data, exchange_data])
def test_a_target_net_is_the_members_own_and_is_handed_on(engine, move):
    def step(model, batch):
        with torch.no_grad():
            for target, online in zip(model.target.parameters(), model.online.parameters(), strict=True):
                move(target, online)
        return F.mse_loss(model.online(batch[0]), model.target(batch[0])) + F.mse_loss(model.online(batch[0]), batch[1])

    torch.manual_seed(0)
    model = Target()
    runs, messages = sweep(model, step, engine)
    assert not messages
    for i, lr in enumerate(LRS):
        losses, trained = train_plainly(model, lambda: step, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        for key, value in trained.state_dict().items():
            torch.testing.assert_close(runs.model(i).state_dict()[key], value, rtol=1e-9, atol=1e-12)
        assert not any(p.requires_grad for p in runs.model(i).target.parameters())


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_a_step_that_freezes_one_of_two_nets_in_between_trains_both(engine):
    """As adversarial nets are trained, with batch norm, of which passes change the buffers."""

    class Nets(nn.Module):
        def __init__(self):
            super().__init__()
            self.maker = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
            self.judge = nn.Linear(4, 1)

    def step(model, batch):
        made = model.maker(torch.randn_like(batch[0]))
        told = F.softplus(-model.judge(batch[0])).mean() + F.softplus(model.judge(made.detach())).mean()
        for parameter in model.judge.parameters():
            parameter.requires_grad_(False)
        taken = F.softplus(-model.judge(made)).mean()
        for parameter in model.judge.parameters():
            parameter.requires_grad_(True)
        return told + taken

    torch.manual_seed(0)
    model = Nets().double()
    runs, messages = sweep(model, step, engine)
    assert not messages
    for i, lr in enumerate(LRS):
        torch.manual_seed(0)  # what a sweep's first seed draws
        losses, trained = train_plainly(model, lambda: step, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        for key, value in trained.state_dict().items():
            torch.testing.assert_close(runs.model(i).state_dict()[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_a_module_under_two_names_stays_one(engine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model[1].again = model[0]
    runs, messages = sweep(model, loss_of, engine)
    assert not messages
    for i, lr in enumerate(LRS):
        losses, trained = train_plainly(model, lambda: loss_of, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        own = runs.model(i)
        assert own[1].again is own[0]
        assert own.state_dict().keys() == trained.state_dict().keys()
        for key, value in trained.state_dict().items():
            torch.testing.assert_close(own.state_dict()[key], value, rtol=1e-9, atol=1e-12)


def test_late_check_of_a_trace_says_since_when_the_result_is_in_doubt(monkeypatch, tmp_path):
    """The trace freezes a number that is kept where nobody looks, and is another from the second window of steps on."""
    monkeypatch.setenv("FACTOR", "1")

    def batches():
        for k in range(40):
            yield BATCHES[k % 3]
            if k == 20:
                os.environ["FACTOR"] = "2"

    def step(model, batch):
        return loss_of(model, batch, float(os.environ["FACTOR"]))

    task = vs.Task(linear(), batches, training_step=step, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    with pytest.warns(vs.FallbackWarning, match=r"since step 2 is in doubt, and so is the result from there on"):
        runs = vs.sweep(task, lrs=LRS, num_steps=40, engine="vectorized", compile=False)
    assert runs.in_doubt_from == 2  # the checks come at steps 1 and 28
    assert "in doubt from step 2" in repr(runs)
    assert vs.load(runs.save(tmp_path / "runs.npz")).in_doubt_from == runs.in_doubt_from
    assert runs.extend(num_steps=2).in_doubt_from == runs.in_doubt_from


def test_sweep_whose_checks_agree_is_in_no_doubt():
    task = vs.Task(linear(), BATCHES, loss_of_pair, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    runs = vs.sweep(task, lrs=LRS, num_steps=40)
    assert runs.in_doubt_from is None
    assert "doubt" not in repr(runs)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x):
        y = self.linear(x)
        return 2 * y if y.mean() > 0 else y


def test_fallback_names_the_construct_the_layer_and_its_line():
    model = nn.Sequential(nn.Tanh(), Branches())
    task = vs.Task(model, BATCHES, loss_of_pair, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    line = Branches.forward.__code__.co_firstlineno + 2
    match = rf"data-dependent control flow, .*, in the layer Branches, at {__file__}:{line}"
    with pytest.warns(vs.FallbackWarning, match=match):
        vs.sweep(task, lrs=LRS, num_steps=3)


def test_fallback_names_what_leaves_pytorch_for_numpy():
    def step(model, batch):
        order = np.argsort(model(batch[0]).detach().sum(1).numpy())
        return model(batch[0][order[:3].copy()]).square().mean()

    model = nn.Linear(4, 2, dtype=torch.float64)
    task = vs.Task(model, BATCHES, training_step=step, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    with pytest.warns(vs.FallbackWarning, match=r"them: numbers taken out of a tensor, as by `.numpy\(\)`, at "):
        vs.sweep(task, lrs=LRS, num_steps=3)


def of_rows(model, batch):
    errors = (model(batch[0]) - batch[1]).square().sum(1)
    return errors[errors > errors.mean()].mean()


def with_a_copy(model, batch):
    with torch.no_grad():
        targets = copy.deepcopy(model)(batch[0])
    return F.mse_loss(model(batch[0] + 0.1), targets) + F.mse_loss(model(batch[0]), batch[1])


def with_own_noise(model, batch):
    noise = torch.randn(batch[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return F.mse_loss(model(batch[0] + noise), batch[1])


@pytest.mark.parametrize(
    ("step", "reason", "line"),
    [
        (with_own_noise, "random numbers from a generator of the model's or the loss's own", 1),
        (of_rows, "a result that is as large as values say, such as the rows that a mask selects", 2),
        (with_a_copy, "a copy of a model or a tensor by `copy.deepcopy`", 2),
    ],
    ids=["generator", "mask", "copy"],
)
def test_fallback_names_what_the_step_does_at_its_line(step, reason, line):
    task = vs.Task(linear(), BATCHES, training_step=step, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    where = f"{__file__}:{step.__code__.co_firstlineno + line}"
    with pytest.warns(vs.FallbackWarning, match=f"them: {reason}, at {where}"):
        vs.sweep(task, lrs=LRS, num_steps=3, engine="vectorized")


class SizedByTheFirstBatch(nn.Linear):
    """As spiking neurons keep their potentials, which have no size before they are called."""

    def __init__(self):
        super().__init__(4, 2, dtype=torch.float64)
        self.register_buffer("potential", torch.zeros(0, dtype=torch.float64))

    def forward(self, inputs):
        if self.potential.shape != (len(inputs), 2):
            self.potential = inputs.new_zeros(len(inputs), 2)
        self.potential = 0.9 * self.potential.detach() + super().forward(inputs)
        return self.potential


def test_fallback_names_the_buffer_whose_shape_changes():
    task = vs.Task(SizedByTheFirstBatch(), BATCHES, F.mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    with pytest.warns(vs.FallbackWarning, match="them: the forward pass gives the buffer 'potential' another shape"):
        runs = vs.sweep(task, lrs=LRS, num_steps=6, engine="vectorized")
    stock.assert_equal(runs, task, 6)


def test_fallback_in_a_layer_of_torch_names_that_layer():
    def step(model, batch):
        packed = nn.utils.rnn.pack_sequence(list(batch[0].unsqueeze(1)))
        return model(packed)[0].data.square().mean()

    model = nn.GRU(4, 2, dtype=torch.float64)
    task = vs.Task(model, BATCHES, training_step=step, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    with pytest.warns(vs.FallbackWarning, match="gru.data, of packed sequences, in the layer GRU"):
        vs.sweep(task, lrs=LRS, num_steps=3, engine="vectorized")


def compiled_whole(model):
    return torch.compile(model, backend="eager")


def compiled_part(model):
    model[0] = torch.compile(model[0], backend="eager")
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [compiled_whole, compiled_part, compiled_in_place])
@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_compiled_model_trains_as_the_one_that_it_was_compiled_from(compiled, engine):
    plain = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.Tanh(), nn.Linear(4, 2, dtype=torch.float64))
    model = compiled(copy.deepcopy(plain))
    names = list(model.state_dict())
    task = vs.Task(model, BATCHES, loss_of_pair, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine=engine)
    assert engine in runs.engine
    for i, lr in enumerate(LRS):
        losses, trained = train_plainly(plain, lambda: loss_of, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        assert list(runs.model(i).state_dict()) == list(trained.state_dict())
    assert list(model.state_dict()) == names


def test_compiled_loss_is_taken_as_it_was():
    task = vs.Task(
        linear(), BATCHES, torch.compile(loss_of_pair, backend="eager"), optimizer=lambda p: torch.optim.SGD(p, 0.1)
    )
    runs = vs.sweep(task, lrs=LRS, num_steps=4)
    assert "traced" in runs.engine


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # in the words of torch 2.13, and of 2.15
def test_scripted_model_is_refused_as_what_it_is():
    model = torch.jit.script(linear())
    task = vs.Task(model, BATCHES, loss_of_pair, optimizer=lambda p: torch.optim.SGD(list(p), 0.1))
    with pytest.raises(TypeError, match="`model` must be a module of Python; got RecursiveScriptModule"):
        vs.sweep(task, lrs=LRS, num_steps=3)


def test_hook_of_a_library_does_not_lead_through_all_of_it(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "hooking.py").write_text(
        "SEEN, FAR = [], []\n\n\ndef far():\n    FAR.append(1)\n\n\ndef hook(*args):\n    SEEN.append(1)\n    far()\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    hooking = importlib.import_module("hooking")
    model = nn.Linear(2, 1)
    model.register_forward_hook(hooking.hook)
    task = vs.Task(model, [(torch.ones(4, 2), torch.ones(4, 1))], F.mse_loss, torch.optim.SGD(model.parameters()))
    held = Watch.of_pass(task, model, has_numbers=True).holders
    assert id(hooking.SEEN) in held
    assert id(hooking.FAR) not in held


def test_functions_of_one_name_are_told_apart_and_set_back(float64):
    def make_part():
        num_calls = 0

        def part(outputs, targets):
            nonlocal num_calls
            num_calls += 1
            return F.mse_loss(outputs, targets) / num_calls

        return part

    def train_plainly(lr):
        own, loss_fn = copy.deepcopy(model), make_loss()
        optimizer, losses = torch.optim.SGD(own.parameters(), lr=lr), []
        for _ in range(5):
            loss = loss_fn(own(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def make_loss():
        parts = [make_part() for _ in range(200)]
        return lambda outputs, targets: parts[0](outputs, targets) + parts[-1](outputs, targets)

    model, inputs, targets = nn.Linear(2, 1), torch.ones(4, 2), torch.ones(4, 1)
    loss_fn = make_loss()
    task = vs.Task(model, [(inputs, targets)], loss_fn, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    for _ in range(2):
        with pytest.warns(vs.FallbackWarning, match="the closure variable `num_calls` of `.*part`"):
            runs = vs.sweep(task, lrs=LRS, num_steps=5, engine="vectorized")
        for i, member in enumerate(runs.members):
            np.testing.assert_allclose(runs.train_loss[:, i], train_plainly(member.lr), rtol=1e-12)
