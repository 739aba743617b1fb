"""The migration page: its code runs as it stands, beside the libraries it speaks of; and what it says of them is so."""

import copy
import re
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NUM_STEPS = 50

pytestmark = pytest.mark.filterwarnings("ignore")  # what the others' imports and trainers warn of


def blocks(section):
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)


def parts(*, is_broken_at=None):
    """A model, its optimizer, a loss and a loader; the loss is NaN from some call on."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    calls = []

    def criterion(outputs, targets):
        calls.append(1)
        loss = nn.functional.cross_entropy(outputs, targets)
        return loss * float("nan") if is_broken_at is not None and len(calls) > is_broken_at else loss

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    loader = DataLoader(TensorDataset(inputs, targets), 16, shuffle=True)
    return {"model": model, "optimizer": optimizer, "criterion": criterion, "train_loader": loader, "vs": vs}


def run(block, given):
    torch.manual_seed(1)
    exec(compile(block, "docs/migration.md", "exec"), given)
    return given


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def lightning():
    """A module, and a trainer that says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from lightning.pytorch.tuner import Tuner

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.own = parts()["model"]
            self.lr = 1e-3

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self.own(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def trainer():
        return lightning.Trainer(
            max_epochs=100,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )

    return types.SimpleNamespace(Module=Module, trainer=trainer, Tuner=Tuner)


def test_torch_lr_finders_program_gives_the_same_numbers_after_its_import_has_changed():
    theirs_block, ours_block, grid_block = blocks("torch-lr-finder")
    body = [block.split("\n\n", 1)[1].split("  #")[0].strip() for block in (theirs_block, ours_block)]
    assert body[0] == body[1], "the import is all that changes"
    theirs, ours = run(theirs_block, parts()), run(ours_block, parts())
    np.testing.assert_allclose(ours["finder"].history["lr"], theirs["finder"].history["lr"], rtol=1e-12)
    np.testing.assert_allclose(ours["finder"].history["loss"], theirs["finder"].history["loss"], rtol=1e-6)
    assert ours["suggested_lr"] == pytest.approx(theirs["suggested_lr"])
    assert 1e-7 <= run(grid_block, parts())["suggested_lr"] <= 10


def test_fastais_call_gives_a_named_tuple():
    theirs_block, ours_block = blocks("fastai")
    compile(theirs_block, "docs/migration.md", "exec")  # fastai is not installed with the tests
    found = run(ours_block, parts())["suggested"]
    assert found._fields == ("valley", "slide")
    for name in re.findall(r"`vs\.suggest\.(\w+)`", SECTIONS["fastai"]):
        assert callable(getattr(vs.suggest, name)), name


def test_lightnings_call_has_its_counterpart(lightning):
    theirs_block, ours_block = blocks("Lightning")
    loader, module = parts()["train_loader"], lightning.Module()
    before = copy.deepcopy(module.state_dict())
    given = {"module": module, "train_loader": loader, "vs": vs}
    ours = run(ours_block, dict(given))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    theirs = run(theirs_block, {**given, "Tuner": lightning.Tuner, "trainer": lightning.trainer()})
    assert ours["suggested_lr"] > 100 * theirs["suggested_lr"], "slopes against lr itself favour the smallest"


def test_transformers_task_is_tested_on_a_tiny_bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    torch.manual_seed(0)
    ids = torch.randint(20, (8, 6))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}]
    (block,) = blocks("Hugging Face transformers")
    given = {"model": BertForSequenceClassification(config), "train_loader": batches, "vs": vs}
    assert 1e-6 <= run(block, given)["suggested_lr"] <= 1e-1


def test_ignites_lines_have_their_counterpart():
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    theirs_block, ours_block = blocks("Ignite")
    names = {"create_supervised_trainer": create_supervised_trainer, "FastaiLRFinder": FastaiLRFinder}
    assert run(theirs_block, parts() | names)["suggested_lr"] > 0
    assert 1e-7 <= run(ours_block, parts())["suggested_lr"] <= 10


def test_ignite_records_each_loss_beside_the_next_steps_rate():
    from ignite.engine import Events, create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    given, used = parts(), []
    trainer = create_supervised_trainer(given["model"], given["optimizer"], given["criterion"])
    finder, optimizer = FastaiLRFinder(), given["optimizer"]

    def note(engine):
        used.append(optimizer.param_groups[0]["lr"])

    how = {"start_lr": 1e-4, "end_lr": 1.0, "num_iter": 20, "diverge_th": 1e9}
    with finder.attach(trainer, {"model": given["model"], "optimizer": optimizer}, **how) as with_finder:
        with_finder.add_event_handler(Events.ITERATION_STARTED, note)
        with_finder.run(given["train_loader"])
    recorded = [float(np.ravel(lr)[0]) for lr in finder.get_results()["lr"]]
    assert used[0] == used[1], "the first two steps at one rate"
    assert recorded[:-1] == pytest.approx(used[1 : len(recorded)])
    assert max(used) < 1.0
    assert min(used) == pytest.approx(1e-4) or min(used) > 1e-4


def test_none_of_the_sequential_finders_stops_at_nan(lightning):
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder
    from torch_lr_finder import LRFinder

    lost = 5
    given = parts(is_broken_at=lost)
    finder = LRFinder(given["model"], given["optimizer"], given["criterion"])
    finder.range_test(given["train_loader"], end_lr=1, num_iter=20)
    assert len(finder.history["loss"]) == 20

    given = parts(is_broken_at=lost)
    trainer, found = create_supervised_trainer(given["model"], given["optimizer"], given["criterion"]), FastaiLRFinder()
    to_save = {"model": given["model"], "optimizer": given["optimizer"]}
    with found.attach(trainer, to_save, end_lr=1.0, num_iter=20) as with_finder:
        with_finder.run(given["train_loader"])
    assert len(found.get_results()["loss"]) >= 19

    module, broken = lightning.Module(), parts(is_broken_at=lost)["criterion"]
    module.training_step = lambda batch, batch_idx: broken(module.own(batch[0]), batch[1])
    theirs = lightning.Tuner(lightning.trainer()).lr_find(
        module, given["train_loader"], num_training=20, update_attr=False
    )
    assert np.isnan(theirs.results["loss"]).sum() > 10

    given = parts(is_broken_at=lost)
    ours = vs.LRFinder(given["model"], given["optimizer"], given["criterion"])
    ours.range_test(given["train_loader"], end_lr=1, num_iter=20)
    assert len(ours.history["loss"]) == lost + 1


def test_page_names_tests_that_exist():
    for name in re.findall(r"`(tests/\w+\.py)`", PAGE):
        assert (Path(__file__).parents[1] / name).is_file()
