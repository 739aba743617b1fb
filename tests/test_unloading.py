"""Copies of a GPU's tensors on the host. Without a GPU `cuda_stand_in` takes its place, whose copies are late."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cuda_stand_in import HOME, Cuda, Stream
from kept_runs import make_task

import vecsweep as vs
from vecsweep._engine import taking_up
from vecsweep._engine.keeping import unloading

BUFFER = 64  # bytes


class Event:
    """One of a stream, which the host waits for."""

    def __init__(self, cuda):
        self.cuda = cuda

    def record(self, stream):
        self.num_queued = len(stream.queue)
        self.stream = stream

    def synchronize(self):
        self.stream.run(self.num_queued)


class LateStream(Stream):
    """A stream on which nothing has happened before somebody waits for it."""

    def __init__(self, cuda, device=None):
        super().__init__(cuda, device)
        self.queue, self.num_run = [], 0

    def run(self, num):
        while self.num_run < num:
            target, source = self.queue[self.num_run]
            target.copy_(source)
            self.num_run += 1


class LateCuda(Cuda):
    """A GPU that copies to pinned memory later than it is asked to."""

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.pinned, self.recorded = [], []
        monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: LateStream(self, device))
        monkeypatch.setattr(torch.cuda, "Event", lambda: Event(self))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda own, stream: self.recorded.append(own.data_ptr()))
        monkeypatch.setattr(unloading, "_pinned", self.pin)
        monkeypatch.setattr(unloading, "_BUFFER_BYTES", BUFFER)

    def pin(self, num_bytes):
        self.pinned.append(torch.full((num_bytes,), 255, dtype=torch.uint8))
        return self.pinned[-1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        stream = self.streams[HOME]
        does_not_wait = len(args) == 3 and args[2]
        if func is torch.ops.aten.copy_.default and does_not_wait and isinstance(stream, LateStream):
            stream.queue.append(args[:2])
            return args[0]
        return super().__torch_dispatch__(func, types, args, kwargs)


TENSORS = {
    "small": torch.arange(3.0),
    "one number": torch.tensor(7),
    "of many buffers": torch.arange(100, dtype=torch.float64),
    "half": torch.arange(50).to(torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.ones(0, 3),
    "a view": torch.arange(60.0).reshape(6, 10)[2],
    "of other strides": torch.arange(60.0).reshape(6, 10).T,
    "complex": torch.tensor([1 + 2j, 3 - 1j]),
}


@pytest.fixture
def cuda(monkeypatch):
    return LateCuda(monkeypatch)


def test_copies_are_whole_once_the_stage_is_left_whatever_is_copied(cuda):
    with cuda, unloading.Stage(HOME) as stage:
        copies = {name: stage.copy(tensor) for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert copies[name].dtype == tensor.dtype
        torch.testing.assert_close(copies[name], tensor, rtol=0, atol=0, msg=name)
        assert tensor.numel() == 0 or copies[name].data_ptr() != tensor.data_ptr()


def test_two_buffers_are_all_that_is_pinned(cuda):
    with cuda, unloading.Stage(HOME) as stage:
        for tensor in TENSORS.values():
            stage.copy(tensor)
    assert [buffer.nbytes for buffer in cuda.pinned] == [BUFFER, BUFFER]


def test_copying_is_queued_after_the_steps_and_keeps_the_memory_of_what_is_copied(cuda):
    tensor = TENSORS["of many buffers"]
    with cuda, unloading.Stage(HOME) as stage:
        stage.copy(tensor)
        own = stage._stream
        assert ("wait", own, cuda.defaults[HOME]) in cuda.log
        assert tensor.data_ptr() in cuda.recorded
        assert len(own.queue) == tensor.nbytes / BUFFER + 0.5
        assert own.num_run < len(own.queue), "the host has not waited for the last of it"
    assert cuda.streams[HOME] is cuda.defaults[HOME]


def test_tensor_of_the_host_is_copied_at_once(cuda):
    own = torch.arange(4.0)
    with cuda, unloading.Stage(torch.device("cuda", 7)) as stage:
        copied = stage.copy(own)
    assert torch.equal(copied, own)
    assert copied.data_ptr() != own.data_ptr()


def test_snapshot_of_a_run_on_a_gpu_is_that_of_one_on_the_host(cuda, monkeypatch, tmp_path):
    """The run is on the host, and taken for one on a GPU when it is kept."""
    states_of, kept = taking_up._states_of, []

    def both(loop, groups):
        kept.append(states_of(loop, groups))
        with cuda:
            on_gpu = SimpleNamespace(device=torch.device("cuda", 7), states=loop.states, grouping=loop.grouping)
            kept.append(states_of(on_gpu, groups))
        return kept[-1]

    monkeypatch.setattr(taking_up, "Stage", lambda device: unloading.Stage(HOME))
    monkeypatch.setattr(taking_up, "_states_of", both)
    task, how = make_task(optimizer=torch.optim.AdamW), {"lrs": [0.01, 0.1], "num_steps": 32, "compile": False}
    runs = vs.sweep(task, **how, checkpoint=tmp_path, checkpoint_every="16 steps")
    (of_host, _), (staged, _) = kept[:2]
    assert staged.keys() == of_host.keys() == {0, 1}
    for i, expected in of_host.items():
        for name, value in expected.parameters.items():
            assert torch.equal(staged[i].parameters[name], value)
            for key, own in expected.optimizer.of_parameters[name].items():
                assert torch.equal(staged[i].optimizer.of_parameters[name][key], own)
    np.testing.assert_array_equal(runs.train_loss, vs.sweep(task, **how).train_loss)
