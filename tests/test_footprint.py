"""What a run is said to take, against the tensors of a real run of PEFT, and what is said where there is too little."""

import copy
import logging
import re
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep._engine import budget
from vecsweep.cli import main
from vecsweep.integrations.peft import make_task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the peers' own imports warn of
    import peft
    import transformers

transformers.logging.set_verbosity_error()

# PEFT asks for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def make_adapters():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=128, n_layer=2, n_head=2, use_cache=False)
    lora = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), lora).train()
    ids = torch.arange(32).view(2, 16)
    return model, {"input_ids": ids, "labels": ids}


def said_of(caplog, task, num_members=3, **options):
    """The sizes of the line that a sweep logs, by what they are of."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="vecsweep"):
        vs.sweep(task, lrs=[1e-3 * (i + 1) for i in range(num_members)], num_steps=2, compile=False, **options)
    (record,) = [record for record in caplog.records if record.name == "vecsweep"]
    line = record.getMessage()
    found = re.findall(r"([\d.]+) (B|KiB|MiB|GiB) (?:of|that is) (not trained|\w+)", line)
    return line, {of: float(number) * UNITS[unit] for number, unit, of in found}


def num_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def kept_for_backward(model, batch):
    """What autograd keeps of a pass, and what it has computed from adapters, parameters aside."""
    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if tensor.requires_grad and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    loss.backward()
    return sum(kept.values())


def test_memory_is_said_before_the_start_and_is_what_a_run_of_peft_takes(caplog):
    model, batch = make_adapters()
    line, said = said_of(caplog, make_task(model, [batch]), engine="vectorized", chunk_size=2)
    alone = copy.deepcopy(model)
    trained = [p for p in alone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    activations = kept_for_backward(alone, batch)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim() > 0]
    frozen = {p.data_ptr(): p for p in alone.parameters() if not p.requires_grad}
    assert num_bytes(p.grad for p in trained) == num_bytes(trained)
    expected = {
        "weights": num_bytes(trained),
        "moments": num_bytes(moments),
        "activations": activations,
        "not trained": num_bytes(frozen.values()) + num_bytes(alone.buffers()),
    }
    for name, size in expected.items():
        assert said[name] == pytest.approx(size, rel=0.006), (name, line)  # of three digits
    assert "3 members, 2 at a time" in line
    assert "as much of gradients" in line


def test_optimizer_whose_moments_only_a_step_shows_is_said_to_be_such(caplog):
    model = nn.Linear(8, 8)
    batches = [(torch.randn(4, 8), torch.randn(4, 8))]
    task = vs.Task(model, batches, F.mse_loss, optimizer=lambda params: torch.optim.Rprop(params, lr=1e-3))
    line, said = said_of(caplog, task)
    assert "moments as its optimizer keeps them" in line
    assert said["weights"] == 4 * 72
    assert "moments" not in said


@pytest.mark.parametrize(("engine", "at_once"), [("sequential", 1), ("vectorized", 3)])
def test_members_that_are_held_at_a_time_are_said(caplog, engine, at_once):
    model, batch = make_adapters()
    line, _ = said_of(caplog, make_task(model, [batch]), engine=engine, chunk_size=3)
    assert f"3 members, {at_once} at a time" in line


def test_nothing_is_said_to_those_who_have_not_asked(capfd):
    model, batch = make_adapters()
    vs.sweep(make_task(model, [batch]), lrs=[1e-3], num_steps=2, progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("free", "num_said"), [(20_000_000, 1), (20_000_000_000, 0)], ids=["scarce", "plenty"])
def test_command_says_it_once_where_it_is_much_and_leaves_the_logger_as_it_was(
    capsys, tmp_path, monkeypatch, free, num_said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(budget, "free_bytes", lambda device: free)
    logger = logging.getLogger("vecsweep")
    before = logger.level, list(logger.handlers)
    assert main(["find-lr", "digits", "--epochs", "1"]) == 0
    assert capsys.readouterr().err.count("vecsweep: memory: about ") == num_said
    assert (logger.level, logger.handlers) == before


# Sweeps over 64 members of 8,000,000 bytes, whose states with moments are 1.5 GB, with 600 MB besides what the process
# has already; prints what is warned of before the first step, and how that ended.
SHORT = """
import resource, warnings
import torch
import torch.nn.functional as F
import vecsweep as vs
torch.set_num_threads(1)
model = torch.nn.Linear(1000, 2000, bias=False)
batches = [(torch.randn(4, 1000), torch.randn(4, 2000))]
task = vs.Task(model, batches, F.mse_loss, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3))
status = open("/proc/self/status").read()
size = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 600 * 2**20, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        vs.sweep(task, lrs=[1e-5 * (i + 1) for i in range(64)], num_steps=4, progress=False)
    except torch.OutOfMemoryError:
        print("no memory")
print([f"{w.category.__name__}: {w.message}" for w in caught][0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_members_whose_states_are_more_than_the_memory_there_is_are_warned_of_before_the_work():
    done = subprocess.run([sys.executable, "-c", SHORT], stdout=subprocess.PIPE, text=True, check=True)
    ended, warned = done.stdout.splitlines()
    assert ended == "no memory"
    told = re.fullmatch(
        r"RuntimeWarning: The weights and moments of 64 members take 1\.43 GiB, and (\d+) MiB of memory is free: .*"
        r"Train fewer members at a time, adapters over a frozen base, .*",
        warned,
    )
    assert 300 < int(told[1]) < 600
