"""What goes wrong while members train: nothing that was computed is lost, and nothing of the caller's is changed."""

import asyncio
import errno
import multiprocessing
import re
import sys
import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import vecsweep as vs


def make_batches(num=10):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(num)]


def make_task(batches=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))
    options = {"batches": make_batches() if batches is None else batches, "loss_fn": F.cross_entropy} | options
    return vs.Task(model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01), **options)


def assert_taken_up(stopped, whole):
    """That going on from a partial result comes to the whole one, bit for bit."""
    num_steps = len(stopped.train_loss)
    assert 0 < num_steps < len(whole.train_loss)
    np.testing.assert_array_equal(stopped.train_loss, whole.train_loss[:num_steps])
    on = stopped.extend(num_steps=len(whole.train_loss) - num_steps)
    np.testing.assert_array_equal(on.train_loss, whole.train_loss)
    for mine, undisturbed in zip(on.model(0).parameters(), whole.model(0).parameters(), strict=True):
        assert torch.equal(mine, undisturbed)


@contextmanager
def no_fallback():
    """Nobody is told that PyTorch cannot batch the members."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", vs.FallbackWarning)
        yield


class Breaking:
    """Batches, of which one raises, the first time that the source has been read so far."""

    def __init__(self, at, error):
        self.at, self.error = at, error

    def __call__(self):
        for k, batch in enumerate(make_batches(40)):
            if k == self.at:
                raise self.error
            yield batch


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_source_that_raises_leaves_what_was_computed_in_the_error(engine):
    error = OSError(errno.EIO, "the disk with the data is gone")
    with pytest.raises(OSError, match="the disk with the data is gone") as caught:
        vs.sweep(make_task(Breaking(37, error)), lrs=[0.01, 0.1], num_steps=100, engine=engine)
    stopped = caught.value.result
    assert not stopped.is_complete
    assert "32 steps, is in this error's attribute `result`" in caught.value.__notes__[0]
    whole = vs.sweep(make_task(make_batches(40)), lrs=[0.01, 0.1], num_steps=32, engine=engine)
    np.testing.assert_array_equal(stopped.train_loss, whole.train_loss)
    assert torch.equal(stopped.model(1)[0].weight, whole.model(1)[0].weight)


def test_label_out_of_range_is_no_matter_of_batching_and_keeps_the_weights():
    batches = make_batches(40)
    batches[35][1][3] = 7
    with no_fallback(), pytest.raises(IndexError, match=r"Target 7 is out of bounds") as caught:
        vs.sweep(make_task(batches), lrs=[0.01, 0.1], num_steps=100, engine="vectorized")
    stopped = caught.value.result
    assert len(stopped.train_loss) == 32
    batches[35][1][3] = 2
    assert_taken_up(stopped, vs.sweep(make_task(batches), lrs=[0.01, 0.1], num_steps=50, engine="vectorized"))


def test_label_out_of_range_in_the_validation_set_is_no_matter_of_batching():
    batches = make_batches(4)
    batches[2][1][3] = 7
    with no_fallback(), pytest.raises(IndexError, match="Target 7 is out of bounds") as caught:
        vs.sweep(make_task(val_batches=batches), lrs=[0.01, 0.1], num_steps=20, engine="vectorized")
    assert len(caught.value.result.train_loss) == 10
    caught.value.result.model(0)


def test_iterator_that_ends_early_keeps_what_was_trained():
    with pytest.raises(ValueError, match="`batches` ran out") as caught:
        vs.sweep(make_task(iter(make_batches(39))), lrs=[0.01, 0.1], num_steps=40)
    stopped = caught.value.result
    assert len(stopped.train_loss) == 32
    stopped.model(1)


def test_error_before_the_first_steps_is_left_as_it_is():
    with pytest.raises(OSError, match="gone") as caught:
        vs.sweep(make_task(Breaking(3, OSError("gone"))), lrs=[0.01, 0.1], num_steps=100)
    assert not hasattr(caught.value, "result")


def test_error_in_the_middle_of_a_window_keeps_the_curves():
    class Model(nn.Linear):
        def forward(self, inputs):
            if inputs[0, 0] == 99:
                raise RuntimeError("this batch is bad")
            return super().forward(inputs)

    batches = make_batches(40)
    batches[35][0][0, 0] = 99
    model = Model(6, 3)
    task = vs.Task(model, batches, F.cross_entropy, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="this batch is bad") as caught:
        vs.sweep(task, lrs=[0.01, 0.1], num_steps=40, engine="sequential")
    assert caught.value.result.train_loss.shape == (32, 2)
    with pytest.raises(ValueError, match="weights of the members are not here"):
        caught.value.result.model(0)


def test_error_of_a_range_test_has_its_result_too():
    with pytest.raises(OSError, match="gone") as caught:
        vs.range_test(make_task(Breaking(37, OSError("gone"))), num_lrs=3, num_steps=100)
    assert isinstance(caught.value.result, vs.RangeTest)


def test_error_with_a_result_of_its_own_keeps_it():
    class Own(Exception):  # noqa: N818
        @property
        def result(self):
            return "its own"

    with pytest.raises(Own, match="no entry") as caught:
        vs.sweep(make_task(Breaking(37, Own("no entry"))), lrs=[0.1], num_steps=100)
    assert caught.value.result == "its own"


# Observers.


def test_tensorboard_that_cannot_write_any_more_is_left_out_with_one_warning(tmp_path, monkeypatch):
    from vecsweep.observers import tensorboard

    written, append = [], tensorboard._append

    def full(file, records):
        written.append(file)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, records)

    monkeypatch.setattr(tensorboard, "_append", full)
    task, options = make_task(val_batches=make_batches(2)), {"lrs": [0.01, 0.1], "epochs": 4}
    with pytest.warns(RuntimeWarning, match="TensorBoard failed, and is told nothing more: .*No space left") as warned:
        runs = vs.sweep(task, **options, tensorboard=tmp_path)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert runs.is_complete
    np.testing.assert_array_equal(runs.train_loss, vs.sweep(task, **options).train_loss)


def test_tensorboard_that_cannot_begin_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="this is a file; name another"):
        vs.sweep(make_task(Breaking(0, OSError("read"))), lrs=[0.01], num_steps=4, tensorboard=tmp_path / "file")


# Terminals.


class Gone:
    """A terminal, or a file on a disk that is full, that takes nothing any more."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("engine", "stream"), [("vectorized", None), ("vectorized", Gone()), ("parallel", None)]
)  # Python itself starts no process where it cannot flush
def test_bar_that_cannot_be_shown_ends_no_training(engine, stream, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # as many as processes need
    task, options = make_task(val_batches=make_batches(2)), {"lrs": [0.01, 0.1], "epochs": 2, "engine": engine}
    expected = vs.sweep(task, **options, progress=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    runs = vs.sweep(task, **options, progress=True)
    assert runs.is_complete
    np.testing.assert_array_equal(runs.train_loss, expected.train_loss)


# Data.


def test_batch_of_nan_is_named_where_all_diverge_at_once():
    batches = make_batches(30)
    batches[20][0][2, 3] = float("nan")
    with pytest.warns(RuntimeWarning, match=r"All 3 members of seed 0 diverged at step 20, whose batch.*NaN"):
        runs = vs.sweep(make_task(batches), lrs=[0.001, 0.01, 0.1], num_steps=40)
    assert runs.diverged_at.tolist() == [20, 20, 20]


def test_empty_batch_is_named_where_all_diverge_by_it():
    batches = make_batches(30)
    batches[20] = tuple(part[:0] for part in batches[20])
    with pytest.warns(RuntimeWarning, match=r"All 2 members of seed 0 diverged at step 20, whose batch.*no sample"):
        vs.sweep(make_task(batches), lrs=[0.01, 0.1], num_steps=40)


ODD = {
    "dtype": lambda x, y: (x.double(), y),
    "structure": lambda x, y: {"inputs": x, "targets": y},
    "length": lambda x, y: (x, y, y),
    "shape": lambda x, y: (x[:, :5], y),
    "labels": lambda x, y: (x, y.double()),
    "nothing": lambda x, y: None,
}


def what_pytorch_says(model, batch):
    try:
        inputs, targets = batch
        F.cross_entropy(model(inputs), targets)
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error).splitlines()[0]


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("odd", ODD)
def test_batch_that_is_another_keeps_what_was_trained_and_is_no_matter_of_batching(odd, engine):
    batches, task = make_batches(40), make_task()
    batches[20] = ODD[odd](*batches[20])
    said = what_pytorch_says(task.model, batches[20])
    with no_fallback(), pytest.raises((RuntimeError, TypeError, ValueError), match=re.escape(said)) as caught:
        vs.sweep(make_task(batches), lrs=[0.01, 0.1], num_steps=40, engine=engine)
    assert len(caught.value.result.train_loss) == 16


def test_members_that_diverge_by_their_learning_rate_are_not_blamed_on_the_data():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = vs.sweep(make_task(), lrs=[1e30, 2e30], num_steps=40)
    assert (runs.diverged_at >= 0).all()


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from make_batches()


def test_endless_source_is_refused_where_epochs_are_asked_for(monkeypatch):
    from vecsweep._engine.data import sources

    monkeypatch.setattr(sources, "_MAX_COUNTED_BATCHES", 500)
    loader = DataLoader(Endless(), batch_size=None)
    with pytest.raises(ValueError, match=r"`epochs` needs batches that come to an end; 500 were read.*`num_steps`"):
        vs.sweep(make_task(loader), lrs=[0.1], epochs=2)
    assert vs.sweep(make_task(loader), lrs=[0.1], num_steps=2).is_complete


class Lying(list):
    def __len__(self):
        return 1000


def test_length_that_is_not_what_a_pass_yields_is_told():
    with pytest.warns(RuntimeWarning, match=r"`batches` says that it has 1000 batches, but a pass over it yielded 10"):
        vs.sweep(make_task(Lying(make_batches())), lrs=[0.1], num_steps=30)


def test_empty_epoch_after_the_first_keeps_what_was_trained():
    rounds = []

    class Once:
        def __iter__(self):
            rounds.append(1)
            return iter(make_batches(20) if len(rounds) < 2 else [])

    with pytest.raises(ValueError, match="must yield at least one batch") as caught:
        vs.sweep(make_task(Once()), lrs=[0.1], num_steps=60)
    assert len(caught.value.result.train_loss) == 16


# Where a sweep is called from.


def sweep_losses(task=None):
    return vs.sweep(make_task() if task is None else task, lrs=[0.01, 0.1], num_steps=20).train_loss


def test_sweep_inside_an_event_loop_trains_as_outside():
    async def main():
        here = sweep_losses()
        return here, await asyncio.to_thread(sweep_losses)

    for losses in asyncio.run(main()):
        np.testing.assert_array_equal(losses, sweep_losses())


def test_sweeps_in_two_threads_take_turns():
    found = []
    tasks = [make_task(), make_task()]  # here, because all threads have one generator to seed
    threads = [threading.Thread(target=lambda task=task: found.append(sweep_losses(task))) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for losses in found:
        np.testing.assert_array_equal(losses, sweep_losses())


class Sweeping(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        return torch.from_numpy(sweep_losses())


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers")
def test_sweep_in_the_worker_of_a_loader_trains_as_outside():
    expected = sweep_losses()
    (losses,) = DataLoader(Sweeping(), num_workers=1, multiprocessing_context="fork")
    np.testing.assert_array_equal(losses[0], expected)


@pytest.mark.skipif(sys.platform != "linux", reason="forked processes")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_process_that_is_forked_while_a_thread_sweeps_can_sweep():
    is_under_way, may_end = threading.Event(), threading.Event()

    def loss(outputs, targets):
        is_under_way.set()
        may_end.wait(60)
        return F.cross_entropy(outputs, targets)

    thread = threading.Thread(
        target=lambda: vs.sweep(make_task(loss_fn=loss), lrs=[0.01], num_steps=2, engine="sequential")
    )
    thread.start()
    is_under_way.wait()
    child = multiprocessing.get_context("fork").Process(target=sweep_losses)
    child.start()
    child.join(timeout=60)
    may_end.set()
    thread.join()
    assert child.exitcode == 0
    child.close()
