"""Adapters over one base: LoRA of rank 8 on GPT-2, against runs of PEFT one after another and full copies.

On a GPU `large` has the vocabulary of GPT-2, too, and 8 and 32 members.

Each arm runs in a process of its own. `ours` is `vs.sweep` with nothing set, `batched` its batched pass. `loop` trains
the adapters one after another over one base, as people do who have little memory; two of them, and their time is
multiplied. `copies` trains one after another too, but holds a whole model for each. Memory is what a process holds at
most beyond what it held before, with the model in it and one step taken.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest
import torch
from conftest import Record

import vecsweep as vs

ARMS = ("ours", "batched", "loop", "copies")
ON_GPU = apart.DEVICE == "cuda"
SIZES = {"tiny": (32, 1), "small": (256, 4), "large": (768, 12)}  # width, layers
NUM_STEPS, RANK, TEXTS, TOKENS = 100, 8, 2, 64
NUM_MEMBERS = (8, 32) if ON_GPU else (16,)
NUM_SYMBOLS = 50257 if ON_GPU else 1000
AIM = 8.0 if ON_GPU else 2.0  # times the loop, with the most members
_NUM_LOOPED = 2


def _model(size: str) -> torch.nn.Module:
    import peft
    from transformers import GPT2Config, GPT2LMHeadModel

    width, num_layers = SIZES[size]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=NUM_SYMBOLS, n_positions=TOKENS, n_embd=width, n_layer=num_layers, n_head=width // 32
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    config.use_cache = False
    lora = peft.LoraConfig(r=RANK, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return peft.get_peft_model(GPT2LMHeadModel(config), lora).train().to(apart.DEVICE)


def _batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(0, NUM_SYMBOLS, (TEXTS, TOKENS), generator=generator) for _ in range(8)]
    return [{"input_ids": ids, "labels": ids} for ids in (text.to(apart.DEVICE) for text in texts)]


def _adamw(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=lr, weight_decay=0.0)


def _alone(model: torch.nn.Module, lr: float, num_steps: int) -> float:
    optimizer, batches = _adamw(model.parameters(), lr), _batches()
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        optimizer.step()
        value: float = loss.item()
    return value


def _one_after_another(model: torch.nn.Module, lrs: Any, num_steps: int) -> tuple[float, list[float]]:
    """Set the adapter back and train it, for each learning rate."""
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    seconds, last = [], []
    for lr in lrs[:_NUM_LOOPED]:
        started = time.perf_counter()
        with torch.no_grad():
            for name, value in start.items():
                model.get_parameter(name).copy_(value)
        last.append(_alone(model, lr, num_steps))
        seconds.append(time.perf_counter() - started)
    return float(np.mean(seconds)) * len(lrs), last


def _measure(arm: str, size: str, num_members: int, num_steps: int) -> dict[str, Any]:
    from vecsweep.integrations.peft import make_task

    lrs = np.geomspace(1e-5, 1e-3, num_members)
    model, engine = _model(size), ""
    _alone(model, 0.0, 1)  # what PyTorch itself needs
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the highest from here on
    before, _ = apart._memory_mb()
    started = time.perf_counter()
    if arm in ("ours", "batched"):
        task = make_task(model, _batches(), lambda params: _adamw(params, 1e-3))
        how: dict[str, Any] = {} if arm == "ours" else {"engine": "vectorized"}
        runs = vs.sweep(task, lrs=lrs, num_steps=num_steps, progress=False, **how)
        seconds, losses, engine = time.perf_counter() - started, runs.train_loss[-1].tolist(), runs.engine
    elif arm == "loop":
        seconds, losses = _one_after_another(model, lrs, num_steps)
    else:
        models = [copy.deepcopy(model) for _ in lrs]
        losses = [_alone(own, lr, num_steps) for own, lr in zip(models[:_NUM_LOOPED], lrs, strict=False)]
        seconds = (time.perf_counter() - started) * len(lrs) / len(losses)
    _, peak = apart._memory_mb()
    base_mb = sum(p.nbytes for p in model.parameters() if not p.requires_grad) / 1e6
    row = {"seconds": seconds, "losses": losses, "peak_mb": peak - before, "base_mb": base_mb, "engine": engine}
    return row | {"adapter_mb": sum(p.nbytes for p in model.parameters() if p.requires_grad) / 1e6}


def _in_a_process(*given: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, given), str(torch.get_num_threads())],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("num_members", NUM_MEMBERS)
@pytest.mark.parametrize("size", ["small", "large"])
def bench_lora(record: Record, tiny: bool, request: pytest.FixtureRequest, size: str, num_members: int) -> None:
    """A sweep of adapters, in time and memory."""
    pytest.importorskip("peft", reason="it comes with the extra peft")
    if size == "large" and not (request.config.option.full or ON_GPU):
        pytest.skip("asked for by --full")
    shape: tuple[Any, ...] = ("tiny", 2, 2) if tiny else (size, num_members, NUM_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {arm: (_measure if tiny else _in_a_process)(arm, *shape) for arm in ARMS}
    ours, loop = found["ours"], found["loop"]
    pairs = zip(found["batched"]["losses"], loop["losses"], strict=False)
    record(
        name=f"{shape[0]}, {shape[1]} x {shape[2]}",
        **{f"{arm}_s": found[arm]["seconds"] for arm in ARMS},
        **{f"{arm}_mb": found[arm]["peak_mb"] for arm in ARMS},
        base_mb=ours["base_mb"],
        adapter_mb=ours["adapter_mb"],
        ratios={"loop": loop["seconds"] / ours["seconds"], "batched": found["batched"]["seconds"] / ours["seconds"]},
        against="loop",
        **({"target": AIM} if num_members == max(NUM_MEMBERS) else {}),
        deviation=max(abs(a - b) / abs(b) for a, b in pairs),
        engine=ours["engine"],
    )


def _main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("numbers", type=int, nargs=3, help="members, steps, threads")
    given = parser.parse_args()
    *shape, num_threads = given.numbers
    torch.set_num_threads(num_threads)
    print(json.dumps(_measure(given.arm, given.size, *shape)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    _main()
