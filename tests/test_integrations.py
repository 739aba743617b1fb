"""Tasks from Lightning, Transformers and Ignite: members against the frameworks themselves, and against plain loops."""

import copy
import dataclasses
import logging
import subprocess
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep.integrations import ignite as for_ignite
from vecsweep.integrations import transformers as for_transformers
from vecsweep.integrations.lightning import FoundLr, lr_find, make_task, smooth_as_lightning
from vecsweep.suggest import smooth

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the peers' own imports warn of
    import ignite.engine
    import lightning.pytorch as pl
    import pytorch_lightning
    import torchmetrics
    import transformers
    from lightning.pytorch.tuner import Tuner

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
transformers.logging.set_verbosity_error()

pytestmark = [pytest.mark.usefixtures("float64")]
ENGINES = ["vectorized", "sequential"]
LRS = [0.003, 0.03]


def make_data(num_rows=48, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, 6, generator=generator, dtype=torch.float64)
    return inputs, (inputs @ torch.arange(18.0, dtype=torch.float64).reshape(6, 3).sin()).argmax(dim=1)


def make_batches(num_rows=48, seed=1):
    inputs, targets = make_data(num_rows, seed)
    return list(zip(inputs.split(8), targets.split(8), strict=True))


def make_loader(seed=1, num_rows=48):
    return DataLoader(TensorDataset(*make_data(num_rows, seed)), batch_size=8)


def make_net(dropout=0.2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    )


class Classifier(pl.LightningModule):
    """An ordinary module: it logs, prints, keeps outputs, and has a scheduler."""

    def __init__(self, lr=0.1, dropout=0.2):
        super().__init__()
        self.save_hyperparameters()
        self.net = make_net(dropout)
        self.train_accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.outputs = []

    def setup(self, stage):
        self.stage = stage

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        outputs = self.net(inputs)
        loss = F.cross_entropy(outputs, targets)
        self.log("train_loss", loss, prog_bar=True)
        self.log_dict({"train_accuracy": self.train_accuracy(outputs, targets)})
        if self.logger is not None:
            self.logger.experiment.add_scalar("loss", loss)
        self.print("a step")
        self.outputs.append(loss.detach())
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        outputs = self.net(inputs)
        self.log("val_loss", F.cross_entropy(outputs, targets), on_epoch=True)
        self.log("val_acc", (outputs.argmax(dim=1) == targets).double().mean(), on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


class Plain(Classifier):
    """Without dropout, so that a Trainer, which draws from the generator itself, comes to the same."""

    def __init__(self, lr=0.1):
        super().__init__(lr, dropout=0.0)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return sgd(self.parameters(), self.hparams.lr)


class Data(pl.LightningDataModule):
    """Splits at random when it is set up, and has loaders only then."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def prepare_data(self):
        self.calls = [*self.calls, "prepare"]

    def setup(self, stage):
        assert self.calls == ["prepare"]
        self.stage = stage
        self.train, self.val = torch.utils.data.random_split(TensorDataset(*make_data()), [40, 8])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=8)


def sgd(params, lr=0.1):
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def oracle_of(module, optimizer=None, batches=None):
    """The same training, written by hand."""
    return vs.Task(
        module,
        make_batches() if batches is None else batches,
        training_step=lambda model, batch: F.cross_entropy(model.net(batch[0]), batch[1]),
        optimizer=optimizer or (lambda params: torch.optim.AdamW(params, lr=0.1)),
    )


def with_step(training_step, **others):
    """A module class with another training step."""
    return type("Other", (Plain,), {"training_step": training_step, **others})


def with_optimizers(configure):
    return type("Other", (Plain,), {"configure_optimizers": configure})()


def trainer(**options):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(accelerator="cpu", **(dict.fromkeys(quiet, False) | options))


def snapshot(module):
    """What could be changed of a module."""
    attributes = {key: copy.copy(value) for key, value in vars(module).items() if not key.startswith("_")}
    states = {name: value.clone() for name, value in module.state_dict().items()}
    return attributes, states, [part.training for part in module.modules()], set(vars(module))


def assert_same(a, b):
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=0)
    assert (a[0], a[2], a[3]) == (b[0], b[2], b[3])


@pytest.mark.parametrize("engine", ENGINES)
def test_members_of_a_module_equal_an_ordinary_loop(engine):
    module = Classifier()
    runs = vs.sweep(make_task(module, make_loader()), lrs=LRS, seeds=2, num_steps=20, engine=engine)
    assert runs.engine.startswith(engine)
    stock.assert_equal(runs, oracle_of(module), 20)


def test_module_that_logs_and_measures_trains_in_one_traced_pass():
    runs = vs.sweep(make_task(Classifier(), make_loader()), lrs=LRS, num_steps=6)
    assert runs.engine.startswith("vectorized, traced")


@pytest.mark.filterwarnings("ignore")
def test_member_equals_what_a_trainer_fits():
    module, loader, val_loader = Plain(lr=0.03), make_loader(), make_loader(seed=2, num_rows=21)
    task = make_task(module, loader, val_dataloaders=val_loader, metrics=["val_acc"])
    runs = vs.sweep(task, lrs=[0.03], epochs=2)
    fitted, fit = copy.deepcopy(module), trainer(max_epochs=2)
    fit.fit(fitted, loader, val_loader)
    torch.testing.assert_close(runs.model(0).state_dict(), fitted.state_dict(), rtol=1e-9, atol=1e-12)
    assert runs.metrics["val_loss"][-1, 0] == pytest.approx(fit.callback_metrics["val_loss"].item(), rel=1e-9)
    assert runs.metrics["val_acc"][-1, 0] == pytest.approx(fit.callback_metrics["val_acc"].item(), rel=1e-9)


@pytest.mark.parametrize(
    "step",
    [
        lambda self, batch: F.cross_entropy(self.net(batch[0]), batch[1]),
        lambda self, batch, batch_idx: F.cross_entropy(self.net(batch[0]), batch[1]) + batch_idx,
        lambda self, batch, batch_idx, dataloader_idx=0: F.cross_entropy(self.net(batch[0]), batch[1]) + dataloader_idx,
        lambda self, *args: F.cross_entropy(self.net(args[0][0]), args[0][1]) + args[1],
        lambda self, batch: {"loss": F.cross_entropy(self.net(batch[0]), batch[1]), "other": None},
    ],
)
def test_training_step_has_any_of_lightnings_signatures(step):
    module = with_step(step)()
    runs = vs.sweep(make_task(module, make_loader()), lrs=[0.03], num_steps=4)
    stock.assert_equal(runs, oracle_of(module, sgd), 4)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=100)


@pytest.mark.parametrize(
    ("wrap", "is_scheduled"),
    [
        (lambda self, made: made, False),
        (lambda self, made: [made], False),
        (lambda self, made: (made,), False),
        (lambda self, made: {"optimizer": made}, False),
        (lambda self, made: ({"optimizer": made},), False),
        (lambda self, made: ([made], []), False),
        (lambda self, made: ([made], [one_cycle(made)]), True),
        (lambda self, made: [[made], [{"scheduler": one_cycle(made), "interval": "step"}]], True),
        (lambda self, made: {"optimizer": made, "lr_scheduler": one_cycle(made)}, True),
        (lambda self, made: [{"optimizer": made, "lr_scheduler": {"scheduler": one_cycle(made)}}], True),
        (
            lambda self, made: {
                "optimizer": made,
                "lr_scheduler": {
                    "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(made),
                    "monitor": "val_loss",
                },
            },
            True,
        ),
        (
            lambda self, made: (
                [made],
                [torch.optim.lr_scheduler.OneCycleLR(made, 0.1, total_steps=self.trainer.estimated_stepping_batches)],
            ),
            True,
        ),
        (
            lambda self, made: (
                [made],
                [torch.optim.lr_scheduler.CosineAnnealingLR(made, self.trainer.max_epochs)],
            ),
            True,
        ),
    ],
)
def test_optimizer_is_read_in_every_form_and_its_scheduler_leaves_no_trace_but_a_warning(wrap, is_scheduled):
    def nesterov(params):
        return torch.optim.SGD(params, lr=0.1, momentum=0.8, nesterov=True)

    module = with_optimizers(lambda self: wrap(self, nesterov(self.parameters())))
    with pytest.warns(UserWarning, match="is set aside") if is_scheduled else nullcontext():
        task = make_task(module, make_loader())
    (group,) = task.optimizer.param_groups
    (expected,) = nesterov(module.parameters()).param_groups
    assert {key: group[key] for key in group if key not in ("params", "lr")} == {
        key: expected[key] for key in expected if key not in ("params", "lr")
    }
    stock.assert_equal(vs.sweep(task, lrs=LRS, num_steps=5), oracle_of(module, nesterov), 5)


def test_warm_up_of_a_scheduler_does_not_touch_the_ratios_between_groups():
    def configure(self):
        groups = [{"params": self.net[0].parameters(), "lr": 0.1}, {"params": self.net[4].parameters(), "lr": 0.3}]
        optimizer = torch.optim.SGD(groups)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.0, lambda step: 0.5])]

    with pytest.warns(UserWarning, match="is set aside"):
        task = make_task(with_optimizers(configure), make_loader())
    assert [group["lr"] for group in task.optimizer.param_groups] == [0.1, 0.3]


def test_data_module_is_set_up_as_a_trainer_does_and_stays_as_it_was():
    data, module = Data(), Classifier()
    before, state = dict(vars(data)), torch.get_rng_state()
    task = make_task(module, datamodule=data)
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(data) == before
    runs = vs.sweep(task, lrs=LRS, epochs=2)
    assert runs.train_loss.shape == (10, 2)
    assert runs.metrics["val_loss"].shape == (2, 2)
    assert vars(data) == before
    assert make_task(module, data).batches.batch_size == 8  # as the first argument, too


def test_data_module_made_of_data_sets_is_taken():
    data = pl.LightningDataModule.from_datasets(TensorDataset(*make_data()), batch_size=16)
    assert len(make_task(Plain(), datamodule=data).batches) == 3


def test_module_may_bring_its_own_loaders():
    own = {"train_dataloader": lambda self: make_loader(), "val_dataloader": lambda self: [make_loader(seed=2)]}
    task = make_task(type("Own", (Plain,), own)())
    assert len(task.batches) == 6
    assert len(task.val_batches) == 6


@pytest.mark.parametrize("is_in_data", [False, True])
def test_batch_hooks_are_called_at_each_batch(is_in_data):
    hooks = {
        "on_before_batch_transfer": lambda self, batch, dataloader_idx: (2 * batch[0], batch[1]),
        "on_after_batch_transfer": lambda self, batch, dataloader_idx: (batch[0] + 1, batch[1]),
    }
    loaders = {"train_dataloader": lambda self: make_loader()}
    if is_in_data:
        module, data = Plain(), type("D", (pl.LightningDataModule,), hooks | loaders)()
    else:
        module, data = type("M", (Plain,), hooks)(), type("D", (pl.LightningDataModule,), loaders)()
    runs = vs.sweep(make_task(module, datamodule=data), lrs=[0.03], num_steps=4)
    batches = [(2 * inputs + 1, targets) for inputs, targets in make_batches()]
    stock.assert_equal(runs, oracle_of(module, sgd, batches), 4)


def doubled(self, batch):
    return 2 * F.cross_entropy(self.net(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (lambda self, batch, batch_idx: doubled(self, batch), 2),
        (lambda self, batch, batch_idx: {"loss": doubled(self, batch)}, 2),
        (lambda self, batch, batch_idx: self.log("val_loss", doubled(self, batch)), 2),
        (lambda self, batch, batch_idx: self.log("other", doubled(self, batch)), 1),
        (pl.LightningModule.validation_step, 1),
    ],
    ids=["returned", "in a dict", "logged", "neither", "no step"],
)
def test_validation_loss_is_the_validation_steps_or_else_the_training_steps(step, factor):
    module = type("Other", (Plain,), {"validation_step": step})()
    val_batches = make_batches(24, seed=2)
    runs = vs.sweep(make_task(module, make_loader(), val_batches), lrs=[0.03], num_steps=3)
    trained = runs.model(0).eval()
    with torch.no_grad():
        expected = factor * np.mean([F.cross_entropy(trained.net(x), y).item() for x, y in val_batches])
    assert runs.metrics["val_loss"][-1, 0] == pytest.approx(expected, rel=1e-9)


def test_module_is_unchanged_and_trained_ones_are_ordinary_modules():
    module = Classifier().eval()
    module.net[1].train()
    before = snapshot(module)
    task = make_task(module, make_loader(), val_dataloaders=make_loader(seed=2), metrics=["val_acc"])
    runs = vs.sweep(task, lrs=LRS, num_steps=5)
    lr_find(module, make_loader(), num_training=20)
    assert_same(snapshot(module), before)
    trained = runs.model(0)
    assert type(trained) is Classifier
    assert set(vars(trained)) - set(vars(module)) == {"stage"}  # its own `setup` did that, on the copy
    assert trained._trainer is None


def test_module_is_unchanged_where_its_step_raises():
    def step(self, batch, batch_idx):
        raise KeyError("no such key")

    module = with_step(step)()
    task = make_task(module, make_loader())
    before = set(vars(task.model))
    with pytest.raises(KeyError, match="no such key"):
        vs.sweep(task, lrs=LRS, num_steps=5)
    assert set(vars(task.model)) == before


def test_loss_that_depends_on_a_torchmetrics_object_is_trained_one_by_one():
    class Metered(Plain):
        def training_step(self, batch, batch_idx):
            outputs = self.net(batch[0])
            return F.cross_entropy(outputs, batch[1]) * (1 + self.train_accuracy(outputs, batch[1]))

    def step(model, batch):
        outputs = model.net(batch[0])
        accuracy = (outputs.argmax(dim=1) == batch[1]).float().mean()
        return F.cross_entropy(outputs, batch[1]) * (1 + accuracy)

    module = Metered()
    with pytest.warns(vs.FallbackWarning, match="train_accuracy"):
        runs = vs.sweep(make_task(module, make_loader()), lrs=LRS, num_steps=5)
    stock.assert_equal(runs, vs.Task(module, make_batches(), training_step=step, optimizer=sgd), 5, rtol=1e-6)


def test_torchmetrics_measure_in_validation_where_they_are_asked_for():
    class Metered(Plain):
        def __init__(self):
            super().__init__()
            self.val_accuracy = torchmetrics.Accuracy("multiclass", num_classes=3, average="micro")

        def validation_step(self, batch, batch_idx):
            outputs = self.net(batch[0])
            self.log("val_accuracy", self.val_accuracy(outputs, batch[1]))
            return F.cross_entropy(outputs, batch[1])

    class AsObject(Metered):
        def validation_step(self, batch, batch_idx):
            outputs = self.net(batch[0])
            self.val_accuracy.update(outputs, batch[1])
            self.log("val_accuracy", self.val_accuracy, on_epoch=True)
            return F.cross_entropy(outputs, batch[1])

    class AsLoss(Metered):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.val_accuracy(self.net(batch[0]), batch[1]))

    val_batches = make_batches(24, seed=2)
    runs = vs.sweep(make_task(Metered(), make_loader(), val_dataloaders=val_batches), lrs=[0.3, 0.03], num_steps=3)
    model = runs.model(1).eval()
    with torch.no_grad():
        accuracy = np.mean([(model.net(x).argmax(dim=1) == y).double().mean().item() for x, y in val_batches])
        loss = np.mean([F.cross_entropy(model.net(x), y).item() for x, y in val_batches])
    assert runs.metrics["val_loss"][-1, 1] == pytest.approx(loss, rel=1e-9)
    for module, name in ((Metered(), "val_accuracy"), (AsObject(), "val_accuracy"), (AsLoss(), "val_loss")):
        metrics = ["val_accuracy"] if name == "val_accuracy" else []
        task = make_task(module, make_loader(), val_dataloaders=val_batches, metrics=metrics)
        runs = vs.sweep(task, lrs=[0.3, 0.03], num_steps=3)
        assert runs.metrics[name][-1, 1] == pytest.approx(accuracy, rel=1e-6) != runs.metrics[name][-1, 0]


@pytest.mark.parametrize("look", [lambda self: self.optimizers(), lambda self: self.trainer.optimizers[0]])
def test_step_may_look_at_the_optimizer_and_is_warned_that_it_is_the_template(look):
    def step(self, batch, batch_idx):
        self.log("lr", look(self).param_groups[0]["lr"])
        self.log("none", self.lr_schedulers())
        return F.cross_entropy(self.net(batch[0]), batch[1])

    task = make_task(with_step(step)(), make_loader())
    with pytest.warns(vs.FallbackWarning, match=r"reads `optimizers`, whose learning rate is that of") as caught:
        runs = vs.sweep(task, lrs=LRS, num_steps=5)
    assert len(caught) == 1
    stock.assert_equal(runs, oracle_of(with_step(step)(), sgd), 5)


@pytest.mark.parametrize("reckon", [lambda i: 1 + i, lambda i: 2 if i % 2 else 1, lambda i: 2.0 if i else 1.0])
def test_step_that_reckons_with_the_index_of_its_batch_is_warned(reckon):
    def step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1]) * reckon(batch_idx)

    task = make_task(with_step(step)(), make_loader())
    with pytest.warns(vs.FallbackWarning, match=r"reads `batch_idx`, which is 0") as caught:
        vs.sweep(task, lrs=LRS, num_steps=5)
    assert len(caught) == 1


@pytest.mark.parametrize("name", ["current_epoch", "global_step"])
def test_module_that_counts_is_warned_that_members_do_not(name):
    def step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1]) * (1 + getattr(self, name))

    task = make_task(with_step(step)(), make_loader())
    with pytest.warns(vs.FallbackWarning, match=f"reads `{name}`, which is 0") as caught:
        vs.sweep(task, lrs=LRS, num_steps=5)
    assert len(caught) == 1


def test_hooks_that_would_change_the_update_are_named():
    class Clipped(Plain):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            pass

        def on_after_backward(self):
            pass

    with pytest.warns(vs.FallbackWarning, match="without `configure_gradient_clipping`, `on_after_backward` of Clip"):
        make_task(Clipped(), make_loader())


@pytest.mark.parametrize(
    "name",
    [
        "on_train_batch_end",
        "on_before_zero_grad",
        "on_fit_start",
        "on_train_epoch_start",
        "optimizer_zero_grad",
        "configure_callbacks",
    ],
)
def test_hooks_in_which_targets_are_moved_are_named(name):
    moving = type("Moving", (Plain,), {name: lambda self, *args: self.target.lerp_(self.net.weight, 0.1)})
    with pytest.warns(vs.FallbackWarning, match=f"train without `{name}` of Moving"):
        make_task(moving(), make_loader())


def test_module_of_the_other_lightning_package_is_taken():
    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.lr = make_net(), 0.1

        def training_step(self, batch):
            self.log("loss", torch.tensor(0.0))
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    module = Other()
    runs = vs.sweep(make_task(module, make_loader()), lrs=LRS, num_steps=5)
    stock.assert_equal(runs, oracle_of(module, lambda params: torch.optim.SGD(params, lr=0.1)), 5)
    found = lr_find(module, make_loader(), num_training=20, update_attr=True)
    assert module.lr == found.suggestion()


def two_optimizers(self):
    return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[4])]


@pytest.mark.parametrize(
    ("module", "loaders", "error", "match"),
    [
        (lambda: with_optimizers(two_optimizers), {}, ValueError, "one optimizer; got 2. .* groups of one optimizer"),
        (lambda: with_optimizers(lambda self: None), {}, ValueError, "torch.optim optimizer; got NoneType"),
        (lambda: with_optimizers(lambda self: []), {}, ValueError, "torch.optim optimizer; got an empty list"),
        (Plain, {"train_dataloaders": None}, ValueError, "neither `train_dataloaders` nor a `datamodule`"),
        (Plain, {"train_dataloaders": [make_loader(), make_loader()]}, ValueError, "one loader; got list of several"),
        (Plain, {"train_dataloaders": {"a": make_loader()}}, ValueError, "`train_dataloaders` must be one loader"),
        (Plain, {"val_dataloaders": [make_loader(), make_loader()]}, ValueError, "`val_dataloaders` must be one"),
        (Plain, {"datamodule": 3}, TypeError, "LightningDataModule; got int"),
        (lambda: nn.Linear(2, 2), {}, TypeError, "LightningModule; got Linear"),
        (trainer, {}, TypeError, "LightningModule; got Trainer. .* pass the module"),
    ],
)
def test_what_cannot_be_trained_is_refused(module, loaders, error, match):
    with pytest.raises(error, match=match):
        make_task(module(), **({"train_dataloaders": make_loader()} | loaders))


def test_manual_optimization_is_refused():
    module = Plain()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match=r"`automatic_optimization = False`\. Return the loss"):
        make_task(module, make_loader())


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (lambda self, batch: None, ValueError, "return the loss, a tensor, or a dict .*; got neither"),
        (lambda self, batch: {"out": 1}, ValueError, "return the loss, a tensor, or a dict .*; got neither"),
        (lambda self, batch: self.trainer.strategy, AttributeError, r"without `self.trainer.strategy` in a sweep"),
        (lambda self, batch: self.trainer.strategy, AttributeError, "in a sweep, where there is no Trainer"),
        (lambda self, dataloader_iter: None, ValueError, "takes `dataloader_iter`"),
    ],
)
def test_step_that_cannot_be_taken_says_why(step, error, match):
    with pytest.raises(error, match=match):
        vs.sweep(make_task(with_step(step)(), make_loader()), lrs=LRS, num_steps=2)


def test_metric_that_is_not_logged_is_refused():
    task = make_task(Plain(), make_loader(), val_dataloaders=make_loader(), metrics=["val_f1"])
    with pytest.raises(ValueError, match=r"logs, \['val_loss', 'val_acc'\]; got 'val_f1'"):
        vs.sweep(task, lrs=LRS, num_steps=2)
    module = type("Bare", (Plain,), {"validation_step": pl.LightningModule.validation_step})()
    with pytest.raises(ValueError, match="`metrics` needs a `validation_step`"):
        make_task(module, make_loader(), metrics=["val_acc"])


def test_missing_lightning_is_one_line_with_the_remedy(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs Lightning. Run: pip install 'vecsweep\[lightning\]'"):
        make_task(nn.Linear(2, 2), make_loader())


def test_nothing_of_the_frameworks_is_imported_before_it_is_used():
    source = (
        "import sys, vecsweep, vecsweep.integrations.lightning, vecsweep.integrations.transformers\n"
        "import vecsweep.integrations.ignite\n"
        "print({n.split('.')[0] for n in sys.modules} & {'lightning', 'pytorch_lightning', 'transformers', 'ignite'})"
    )
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


@pytest.mark.filterwarnings("ignore")
def test_losses_equal_those_of_lightnings_finder_at_its_learning_rates():
    module, loader = Plain(), make_loader()
    options = {"min_lr": 1e-4, "max_lr": 1.0, "num_training": 30}
    theirs = Tuner(trainer(max_epochs=100)).lr_find(
        copy.deepcopy(module), loader, early_stop_threshold=None, update_attr=False, **options
    )
    lrs, losses = np.array(theirs.results["lr"]), np.array(theirs.results["loss"])
    as_theirs = {"lightning": lambda progress: np.interp(progress, np.linspace(0, 1, 30), lrs)}
    runs = vs.sweep(make_task(module, loader), lrs=[1.0], schedules=as_theirs, num_steps=30, divergence_factor=None)
    np.testing.assert_allclose(runs.lr[:, 0], lrs, rtol=1e-12)
    np.testing.assert_allclose(smooth_as_lightning(runs.train_loss[:, 0]), losses, rtol=1e-9)
    # Its own learning rates: the second of 31 is left out; those of `lr_find` are 30 with equal ratios.
    np.testing.assert_allclose(lrs, np.delete(np.geomspace(1e-4, 1.0, 31), 1), rtol=1e-9)
    ours = lr_find(module, loader, **options)
    np.testing.assert_allclose(ours.results["lr"], np.geomspace(1e-4, 1.0, 30), rtol=1e-9)
    # Its own rule, on our curve.
    theirs.results = {"lr": ours.results["lr"], "loss": smooth_as_lightning(ours.found.scores).tolist()}
    for skip_begin, skip_end in ((10, 1), (0, 1), (5, 10)):
        expected = theirs.suggestion(skip_begin, skip_end)
        assert ours.suggestion(skip_begin, skip_end, rule="lightning") == pytest.approx(expected, rel=1e-12)


def test_finder_runs_many_seeds_on_both_scales():
    found = lr_find(Classifier(), make_loader(), min_lr=1e-3, max_lr=0.1, num_training=20, mode="linear", seeds=3)
    assert found.found.engine.startswith("vectorized")
    assert len(found.found.members) == 3
    np.testing.assert_allclose(found.results["lr"], np.linspace(1e-3, 0.1, 20), rtol=1e-12)
    np.testing.assert_allclose(found.results["loss"], found.found.train_loss.mean(axis=1), rtol=1e-12)


def test_finder_suggests_the_steepest_slope_against_log_lr():
    lrs = np.geomspace(1e-6, 1.0, 60)
    losses = 2.0 - 1.0 / (1.0 + np.exp(-3.0 * np.log(lrs / 0.01)))  # steepest at 0.01 on a logarithmic axis
    found = lr_find(Plain(), make_loader(), min_lr=1e-6, num_training=60, early_stop_threshold=None)
    found = FoundLr(dataclasses.replace(found.found, train_loss=losses[:, None]))
    assert 0.01 <= found.suggestion() <= 0.04  # smoothing lags behind
    slopes = np.diff(smooth(losses, 0.8)) / np.diff(np.log(lrs))
    assert found.suggestion(0, 0) == pytest.approx(lrs[np.argmin(slopes)], rel=1e-9)
    assert found.suggestion(skip_begin=55, rule="lowest") == pytest.approx(lrs[58])
    with pytest.raises(ValueError, match="at least two finite losses; got 1 of 60, with `skip_begin` 58"):
        found.suggestion(58)


def test_finder_stops_where_the_loss_explodes():
    found = lr_find(Plain(), make_loader(), max_lr=1e30, num_training=50)
    assert found.found.members[0].diverged_at is not None
    assert np.isnan(found.results["loss"][-1])
    assert np.isfinite(found.suggestion())


def test_finder_tries_a_grid_when_it_is_asked_to():
    found = lr_find(Plain(), make_loader(), min_lr=1e-4, num_training=10, method="grid", num_lrs=12)
    assert found.found.train_loss.shape == (10, 12)
    assert found.suggestion(0, 0) == found.found.suggest().lr


def test_finder_sets_the_learning_rate_only_if_asked():
    module = Plain(lr=0.1)
    lr_find(module, make_loader(), num_training=20)
    assert module.hparams.lr == 0.1
    found = lr_find(module, make_loader(), num_training=20, update_attr=True)
    assert module.hparams.lr == found.suggestion() != 0.1
    with pytest.raises(AttributeError, match="`update_attr` needs an attribute `rate` in the module"):
        lr_find(module, make_loader(), update_attr=True, attr_name="rate")


@pytest.mark.filterwarnings("ignore")
def test_finder_takes_accumulation_and_clipping_from_a_trainer():
    module = Classifier()
    how = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    found = lr_find(
        module, make_loader(), trainer=trainer(**how), min_lr=1e-3, num_training=10, method="grid", num_lrs=2
    )
    for i, member in enumerate(found.found.members):
        expected = stock.train(oracle_of(module), member.lr, 10, accumulation_steps=2, max_grad_norm=0.1)
        np.testing.assert_allclose(found.found.train_loss[:, i], expected.losses, rtol=1e-9)
    with pytest.raises(ValueError, match="must clip gradients by norm"):
        lr_find(module, make_loader(), trainer=trainer(**how, gradient_clip_algorithm="value"))
    with pytest.raises(ValueError, match=r"must have the precision 32-true, .*; got 64-true"):
        lr_find(module, make_loader(), trainer=trainer(precision="64-true"))


@pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning")
def test_finder_tells_of_batches_that_a_trainer_would_not_join_with_those_of_the_next_pass():
    with pytest.warns(vs.FallbackWarning, match=r"The last 2 of the 6 batches of a pass are accumulated"):
        lr_find(Plain(), make_loader(), trainer=trainer(accumulate_grad_batches=4), num_training=3)


def test_plot_marks_the_suggestion():
    found = lr_find(Plain(), make_loader(), min_lr=1e-4, num_training=30)
    labels = [text.get_text() for text in found.plot().get_legend().get_texts()]
    assert f"suggestion() {found.suggestion():.3g}" in labels
    unmarked = [text.get_text() for text in found.plot(suggest=False).get_legend().get_texts()]
    assert not any("suggestion()" in label for label in unmarked)
    assert isinstance(found, FoundLr)


SIZES = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def make_bert(head=transformers.BertForSequenceClassification, attention="sdpa"):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        attn_implementation=attention,
        **SIZES,
    )
    return head(config)


def make_gpt2(attention="sdpa"):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=16, attn_implementation=attention, **SIZES
    )
    return transformers.GPT2LMHeadModel(config)


def make_texts(task="classification", num_batches=4, seed=0):
    """Batches of token ids, of which some are padding."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(num_batches):
        ids = torch.randint(3, 40, (4, 7), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 4:] = mask[3, 6:] = 0
        labels = torch.randint(2, (4,), generator=generator)
        if task != "classification":
            labels = ids.masked_fill(mask == 0, -100)
        batches.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return batches


def adamw(params):
    return torch.optim.AdamW(params, lr=5e-5, weight_decay=0.0)


def oracle_of_texts(model, batches, optimizer=adamw):
    return vs.Task(model, batches, training_step=lambda model, batch: model(**batch).loss, optimizer=optimizer)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("make", "texts", "rtol"),
    [
        (make_bert, "classification", 1e-9),
        (lambda attention: make_bert(transformers.BertForMaskedLM, attention), "language", 1e-9),
        (make_gpt2, "language", 1e-5),  # its loss is in float32, whatever the model is in
    ],
    ids=["BERT", "BERT masked", "GPT-2"],
)
def test_members_of_a_transformer_equal_an_ordinary_loop(make, texts, rtol, attention):
    model, batches = make(attention=attention), make_texts(texts)
    task = for_transformers.make_task(model, batches)
    runs = vs.sweep(task, lrs=[1e-4, 1e-3], num_steps=8, engine="vectorized")
    assert runs.engine.startswith("vectorized, traced")
    stock.assert_equal(runs, oracle_of_texts(model, batches), 8, rtol=rtol)


def test_batches_of_a_tokenizers_collator_are_traced_and_stay_as_they_are():
    rows = [{key: value[i] for key, value in batch.items()} for batch in make_texts() for i in range(4)]

    def collate(samples):
        return transformers.BatchEncoding(torch.utils.data.default_collate(samples))

    loader, model = DataLoader(rows, batch_size=4, collate_fn=collate), make_bert()
    for batches in (loader, list(loader), iter(loader), lambda seed: iter(loader)):
        task = for_transformers.make_task(model, batches)
        runs = vs.sweep(task, lrs=[1e-3], num_steps=4, engine="vectorized")
        assert runs.engine.startswith("vectorized, traced")
        stock.assert_equal(runs, oracle_of_texts(model, make_texts()), 4)
    assert loader.collate_fn is collate
    assert isinstance(next(iter(loader)), transformers.BatchEncoding)


def test_validation_and_metrics_are_measured_on_what_the_model_returns():
    model, val_batches = make_bert(), make_texts(seed=1)

    def accuracy(outputs, batch):
        return (outputs.logits.argmax(dim=1) == batch["labels"]).double().mean()

    task = for_transformers.make_task(
        model, make_texts(), adamw(model.parameters()), val_batches=val_batches, metrics={"accuracy": accuracy}
    )
    runs = vs.sweep(task, lrs=[1e-3], num_steps=4)
    trained = runs.model(0).eval()
    with torch.no_grad():
        outputs = [trained(**batch) for batch in val_batches]
    loss = np.mean([output.loss.item() for output in outputs])
    hits = np.mean([accuracy(*pair).item() for pair in zip(outputs, val_batches, strict=True)])
    assert runs.metrics["val_loss"][-1, 0] == pytest.approx(loss, rel=1e-9)
    assert runs.metrics["val_accuracy"][-1, 0] == pytest.approx(hits, rel=1e-9)


def test_model_that_returns_a_tuple_is_taken():
    model = make_bert()
    model.config.return_dict = False
    runs = vs.sweep(for_transformers.make_task(model, make_texts()), lrs=[1e-3], num_steps=4)
    stock.assert_equal(runs, oracle_of_texts(make_bert(), make_texts()), 4)


def test_default_optimizer_is_the_trainers():
    (group,) = for_transformers.make_task(make_bert(), make_texts()).optimizer(make_bert().parameters()).param_groups
    defaults = {
        field.name: field.default for field in vars(transformers.TrainingArguments)["__dataclass_fields__"].values()
    }
    assert group["lr"] == defaults["learning_rate"]
    assert group["weight_decay"] == defaults["weight_decay"]
    assert group["betas"] == (defaults["adam_beta1"], defaults["adam_beta2"])
    assert group["eps"] == defaults["adam_epsilon"]


def test_model_and_library_are_unchanged_also_after_an_error():
    model, batches, masking = make_bert(), make_texts(), sys.modules["transformers.masking_utils"]
    is_tracing, before = masking.is_tracing, {name: p.clone() for name, p in model.state_dict().items()}
    vs.sweep(for_transformers.make_task(model, batches), lrs=[1e-3], num_steps=3)
    with pytest.raises(IndexError, match="out of range"):
        vs.sweep(
            for_transformers.make_task(model, [batches[0] | {"input_ids": batches[0]["input_ids"] + 40}]),
            lrs=[1e-3],
            num_steps=3,
        )
    assert masking.is_tracing is is_tracing
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_batch_without_labels_is_refused_by_its_keys():
    batch = {key: value for key, value in make_texts()[0].items() if key != "labels"}
    with pytest.raises(ValueError, match=r"must return a loss; .* batch with \['input_ids', 'attention_mask'\]"):
        vs.sweep(for_transformers.make_task(make_bert(), [batch]), lrs=[1e-3], num_steps=2)


def test_batch_that_is_no_dict_is_refused():
    with pytest.raises(TypeError, match="Batches must be dicts of the model's arguments; got tuple"):
        vs.sweep(for_transformers.make_task(make_bert(), make_batches()), lrs=[1e-3], num_steps=2)


@pytest.mark.parametrize(
    "task_of",
    [lambda: for_transformers.make_task(make_bert(), make_texts()), lambda: make_task(Classifier(), make_loader())],
    ids=["transformers", "lightning"],
)
def test_learning_rate_of_such_a_task_is_found_in_one_line(task_of):
    answer = vs.find_lr(task_of(), num_steps=32)
    assert answer.interval[0] <= answer.lr <= answer.interval[1]
    untrained = task_of()
    batches = list(untrained.batches)

    def loss_of(model):
        return sum(untrained.loss(model, batch).item() for batch in batches)

    assert loss_of(answer.model()) < loss_of(untrained.model)


def test_what_has_a_model_and_is_no_trainer_is_refused_with_what_to_pass():
    class Trainer:
        model = make_bert()

    with pytest.raises(TypeError, match=r"got Trainer. .*make_task\(trainer.model, trainer.get_train_dataloader"):
        for_transformers.make_task(Trainer(), make_texts())


def prepare(batch, device, non_blocking):
    return 2 * batch["x"].to(device, non_blocking=non_blocking), batch["y"].to(device)


PARTS = {
    "prepare_batch": prepare,
    "model_transform": lambda outputs: outputs - 1,
    "model_fn": lambda model, inputs: 3 * model(inputs),
}


@pytest.mark.parametrize("names", [(), ("prepare_batch",), tuple(PARTS)])
def test_members_equal_a_supervised_trainer_of_ignite(names):
    parts, pairs = {name: PARTS[name] for name in names}, make_batches()
    batches = [{"x": x, "y": y} for x, y in pairs] if names else pairs
    model, loss_fn = make_net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runs = vs.sweep(for_ignite.make_task(model, optimizer, loss_fn, batches, **parts), lrs=LRS, num_steps=12)
    assert runs.engine.startswith("vectorized, traced")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for i, lr in enumerate(LRS):
        own, losses = copy.deepcopy(model), []
        stepped = torch.optim.SGD(own.parameters(), lr=lr, momentum=0.9)
        engine = ignite.engine.create_supervised_trainer(own, stepped, loss_fn, **parts)
        engine.add_event_handler(
            ignite.engine.Events.ITERATION_COMPLETED, lambda e, to=losses: to.append(e.state.output)
        )
        torch.manual_seed(0)
        engine.run(batches, max_epochs=2)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        torch.testing.assert_close(runs.model(i).state_dict(), own.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("names", [(), tuple(PARTS)])
def test_metrics_are_of_what_the_loss_is_of(names):
    parts, pairs = {name: PARTS[name] for name in names}, make_batches()
    batches = [{"x": x, "y": y} for x, y in pairs] if names else pairs
    model = make_net()
    task = for_ignite.make_task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        F.cross_entropy,
        batches,
        val_batches=batches,
        metrics={"again": F.cross_entropy},
        **parts,
    )
    runs = vs.sweep(task, lrs=[0.03], num_steps=3)
    np.testing.assert_allclose(runs.metrics["val_again"], runs.metrics["val_loss"], rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": lambda: None}, "`model` must be an nn.Module; got function"),
        ({"model_fn": 3}, "`model_fn` must be a f"),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(change, match):
    model = make_net()
    parts = {
        "model": model,
        "optimizer": adamw(model.parameters()),
        "loss_fn": F.cross_entropy,
        "batches": make_batches(),
    }
    with pytest.raises(TypeError, match=match):
        for_ignite.make_task(**(parts | change))
