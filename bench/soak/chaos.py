"""An ordinary script of a sweep that is kept, for `ckpt-chaos`, which kills it at every file that it writes.

ckpt-chaos run --result-file "{out}/result.txt" -- python bench/soak/chaos.py {out}
"""

import sys
from pathlib import Path

import torch
from torch import nn

import vecsweep as vs

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))
batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(12)]
task = vs.Task(model, batches, nn.functional.cross_entropy, optimizer=torch.optim.AdamW(model.parameters()))
out = Path(sys.argv[1])
runs = vs.sweep(
    task,
    lrs=[1e-3, 1e-2],
    seeds=2,
    num_steps=64,
    engine="vectorized",
    compile=False,
    progress=False,
    checkpoint=out / "kept",
    checkpoint_every="16 steps",
)
weights = [value.tolist() for i in range(4) for value in runs.model(i).state_dict().values()]
new = out / "result.new"
new.write_text(repr((runs.train_loss.tolist(), weights)))
new.replace(out / "result.txt")
