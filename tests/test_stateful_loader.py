"""torchdata's loaders go to their place by themselves; where that is another place, they are read forward."""

import os
import sys

import pytest
import torch
from kept_runs import assert_same, fork, make_task
from torch.utils.data import IterableDataset, TensorDataset

import vecsweep as vs

pytest.importorskip("torchdata", reason="torchdata is not installed")
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there are no forks"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

GENERATOR = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.randn(400, 6, generator=GENERATOR), torch.randint(3, (400,), generator=GENERATOR)


class Samples(TensorDataset):
    """Samples with noise, each of which is noted when it is read."""

    def __init__(self, log=None):
        super().__init__(INPUTS, TARGETS)
        self.log = log

    def __getitem__(self, i):
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(".")
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(x.shape), y


class Stream(IterableDataset):
    """A source that has no length, and knows where it stands."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        while self.at < 400:
            self.at += 1
            yield INPUTS[self.at - 1], TARGETS[self.at - 1]
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def loader(dataset, **options):
    from torchdata.stateful_dataloader import StatefulDataLoader

    torch.manual_seed(5)
    return StatefulDataLoader(dataset, batch_size=8, **options)


def run(folder, own_loader, num_steps=130):
    """Epochs of 50 batches; snapshots far from where they begin."""
    task = make_task(batches=lambda: own_loader)
    how = {"lrs": [0.01, 0.1], "num_steps": num_steps, "compile": False, "engine": "vectorized"}
    return vs.sweep(task, **how, checkpoint=folder, checkpoint_every="16 steps")


def die_after(num_snapshots, folder, own_loader):
    """Run in a process that dies once so many snapshots are on disk."""

    def die():
        from vecsweep.checkpoint.keeper import FolderKeeper

        keep, kept = FolderKeeper.keep, []

        def keep_and_die(self, snapshot):
            keep(self, snapshot)
            self.wait()
            kept.append(snapshot.num_done)
            if len(kept) == num_snapshots:
                os._exit(7)

        FolderKeeper.keep = keep_and_die
        run(folder, own_loader)

    assert os.waitstatus_to_exitcode(os.waitpid(fork(die), 0)[1]) == 7


@pytest.mark.parametrize("num_snapshots", [3, 6])
def test_place_is_gone_to_and_not_read_up_to(num_snapshots, tmp_path):
    whole = run(tmp_path / "whole", loader(Samples(), shuffle=True))
    die_after(num_snapshots, tmp_path / "kept", loader(Samples(), shuffle=True))
    (snapshot,) = sorted((tmp_path / "kept" / "run-000").glob("step-*"))[-1:]
    num_left = 130 - int(snapshot.name.removeprefix("step-"))
    again = run(tmp_path / "kept", loader(Samples(tmp_path / "log"), shuffle=True))
    assert_same(again, whole)
    num_read = len((tmp_path / "log").read_text()) / 8
    assert num_left <= num_read < num_left + 2 * 16 + 2, "and not the batches before"


def test_source_that_knows_where_it_stands_goes_on_there(tmp_path):
    whole = run(tmp_path / "whole", loader(Stream()))
    die_after(6, tmp_path / "kept", loader(Stream()))
    assert_same(run(tmp_path / "kept", loader(Stream())), whole)


def test_what_workers_drew_is_drawn_again_where_the_loader_cannot(tmp_path):
    whole = run(tmp_path / "whole", loader(Samples(), shuffle=True, num_workers=1))
    die_after(6, tmp_path / "kept", loader(Samples(), shuffle=True, num_workers=1))
    assert_same(run(tmp_path / "kept", loader(Samples(), shuffle=True, num_workers=1)), whole)


def test_callers_loader_stands_where_it_stood(tmp_path):
    own = loader(Samples(), shuffle=True)
    batches = iter(own)
    next(batches)
    before = own.state_dict()
    run(tmp_path / "kept", own, num_steps=20)
    assert str(own.state_dict()) == str(before)
    assert own._iterator is batches
