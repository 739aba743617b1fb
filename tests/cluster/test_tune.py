"""The recipe of docs/scale.md: a trial of Ray Tune that is a whole sweep."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import vecsweep as vs

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vecsweep[cluster]'")
pytest.importorskip("pyarrow", reason="Ray Tune is not installed: pip install 'ray[tune]'")
pytest.importorskip("pandas", reason="Ray Tune is not installed: pip install 'ray[tune]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
LRS = [0.01, 0.03, 0.1]


def make_task(width):
    torch.manual_seed(0)
    inputs = torch.randn(64, 3)
    data = [(inputs, torch.sin(3 * inputs).sum(1, keepdim=True))]
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return vs.Task(model, data, nn.functional.mse_loss, optimizer=optimizer, val_batches=data)


def test_trial_of_the_recipe_is_a_whole_sweep(nodes, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    (recipe,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    recipe = recipe.replace("RunConfig(", f"RunConfig(storage_path={str(tmp_path)!r}, verbose=0, ")
    ray.init(nodes.address, log_to_driver=False)
    try:
        names = {"make_task": make_task, "LRS": LRS, "__name__": __name__}
        exec(compile(recipe, "docs/scale.md", "exec"), names)
    finally:
        ray.shutdown()
    runs = vs.sweep(make_task(8), lrs=LRS, seeds=2, num_steps=20).extend(num_steps=20)
    best = runs.best("val_loss")
    found = names["best"]
    assert found.config == {"width": 8}
    assert found.metrics["val_loss"] == pytest.approx(runs.final("val_loss")[best], rel=1e-5)
    assert found.metrics["lr"] == runs.members[best].lr
