"""MLflow, Weights & Biases and Trackio: what their own readers find in the runs that vecsweep writes.

Not all are installed with the tests, because they bring much: `make test-trackers` installs them, and runs these.
"""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep.observers import MLflow, Trackio, WandB

ROOT = Path(__file__).parents[1]
X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
BATCHES = [(X[start : start + 8], Y[start : start + 8]) for start in range(0, 40, 8)]
LRS = [0.01, 0.1, 1e308]
NAMES = ["lr=0.01 schedule=cosine seed=0", "lr=0.1 schedule=cosine seed=0", "lr=1e+308 schedule=cosine seed=0"]


def needs(package):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


pytestmark = [  # what the packages warn of, and leave open, is their own affair
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def task_of():
    torch.manual_seed(0)
    optimizer = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    return vs.Task(nn.Linear(6, 3), BATCHES, F.cross_entropy, optimizer=optimizer, val_batches=[(X, Y)])


def watched(observer):
    """A sweep that goes on, one of whose members diverges."""
    return vs.sweep(task_of(), lrs=LRS, schedules=["cosine"], epochs=3, callbacks=[observer]).extend(epochs=1)


def expected(runs, i):
    """A member's curves, by the arrays of the sweep."""
    there = ~np.isnan(runs.train_loss[:, i])
    found = {
        name: (np.flatnonzero(there).tolist(), values[there, i])
        for name, values in {"train_loss": runs.train_loss, "lr": runs.lr}.items()
    }
    there = ~np.isnan(runs.metrics["val_loss"][:, i])
    return {**found, "val_loss": (runs.evaluated_at[there].tolist(), runs.metrics["val_loss"][there, i])}


def is_finite(curve):
    steps, values = curve
    kept = np.isfinite(values)
    return np.asarray(steps)[kept].tolist(), np.asarray(values)[kept].tolist()


@needs("mlflow")
def test_mlflow_finds_a_run_for_each_member_below_one_for_all(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    runs = watched(MLflow("digits", uri, group="first"))
    client = MlflowClient(uri)
    found = {
        run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    }
    assert set(found) == {"first", *NAMES}
    assert found["first"].info.status == "FINISHED"
    for i, name in enumerate(NAMES):
        own = found[name]
        assert own.data.tags["mlflow.parentRunId"] == found["first"].info.run_id
        assert own.data.params == {"lr": str(LRS[i]), "schedule": "cosine", "seed": "0"}
        for metric, curve in expected(runs, i).items():
            history = sorted((point.step, point.value) for point in client.get_metric_history(own.info.run_id, metric))
            steps, values = is_finite(([step for step, _ in history], [value for _, value in history]))
            assert (steps, values) == (pytest.approx(is_finite(curve)[0]), pytest.approx(is_finite(curve)[1]))
    assert [found[name].info.status for name in NAMES] == ["FINISHED", "FINISHED", "FAILED"]
    assert found[NAMES[1]].data.metrics["final/val_loss"] == pytest.approx(runs.final("val_loss")[1])
    assert found[NAMES[2]].data.metrics["diverged_at"] == runs.members[2].diverged_at
    assert [found[name].data.tags["status"] for name in NAMES] == ["finished", "finished", "diverged"]


@needs("wandb")
def test_weights_and_biases_writes_a_run_for_each_member_offline(tmp_path, monkeypatch):
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    observer = WandB("digits", group="first", mode="offline", dir=tmp_path)
    runs = vs.sweep(task_of(), lrs=LRS, schedules=["cosine"], epochs=3, callbacks=[observer])
    found = {}
    for file in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"):
        for _ in range(200):  # another process writes the end
            records = list(read_wandb(file))
            if records and "exit" in records[-1]:
                break
            time.sleep(0.1)
        (run,) = (record["run"] for record in records if "run" in record)
        found[run["display_name"]] = (run, records)
    assert set(found) == set(NAMES)
    for i, name in enumerate(NAMES):
        run, records = found[name]
        assert (run["project"], run["run_group"]) == ("digits", "first")
        config = {item["key"]: json.loads(item["value_json"]) for item in run["config"]["update"]}
        assert {key: config[key] for key in ("lr", "schedule", "seed")} == {
            "lr": LRS[i],
            "schedule": "cosine",
            "seed": 0,
        }
        rows = [history_of(record["history"]) for record in records if "history" in record]
        for metric, curve in expected(runs, i).items():
            steps, values = is_finite(
                ([row["_step"] for row in rows if metric in row], [row[metric] for row in rows if metric in row])
            )
            assert (steps, values) == (is_finite(curve)[0], pytest.approx(is_finite(curve)[1]))
        fields = {}
        for record in records:
            for item in record.get("summary", {}).get("update", ()):
                fields["/".join(item.get("nested_key") or [item.get("key", "")])] = json.loads(item["value_json"])
        assert fields["status"] == ("diverged" if i == 2 else "finished")
        if i == 2:
            assert fields["diverged_at"] == runs.members[2].diverged_at
        else:
            assert fields["final/val_loss"] == pytest.approx(runs.final("val_loss")[i])


def history_of(history):
    row = {"/".join(item.get("nested_key") or [item.get("key", "")]): item["value_json"] for item in history["item"]}
    return {key: float(value) if key != "_step" else int(value) for key, value in row.items() if value[0] not in '"{['}


def read_wandb(file):
    """The records of an offline run: messages of Weights & Biases in a log of LevelDB's documented form."""
    from google.protobuf.json_format import MessageToDict
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message = file.read_bytes(), 7, b""  # after ":W&B", a magic number and the version
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15  # in the block
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        message = (message if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(message)
            yield MessageToDict(record, preserving_proto_field_name=True)


TRACKIO = """
import json, sys
sys.path.insert(0, sys.argv[1])
import test_trackers as tests
from trackio.sqlite_storage import SQLiteStorage

runs = tests.watched(tests.Trackio("digits", group="first"))
found = {
    name: (SQLiteStorage.get_run_config("digits", name), SQLiteStorage.get_logs("digits", name))
    for name in SQLiteStorage.get_runs("digits")
}
curves = [{name: (steps, list(values)) for name, (steps, values) in tests.expected(runs, i).items()} for i in range(3)]
print("FOUND", json.dumps([found, curves, list(runs.final("val_loss")), runs.members[2].diverged_at]))
"""


@needs("trackio")
def test_trackio_finds_a_run_for_each_member(tmp_path):
    """In a process of its own, because Trackio reads where to write when it is imported."""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", TRACKIO, str(Path(__file__).parent)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed, found = done.stdout.split("FOUND")
    assert printed.strip() == "", "what Trackio says for each run would fill the screen"
    found, curves, final, diverged_at = json.loads(found)
    assert set(found) == {f"first: {name}" for name in NAMES}
    for i, name in enumerate(NAMES):
        config, rows = found[f"first: {name}"]
        own = {"lr": LRS[i], "schedule": "cosine", "seed": 0, "_Group": "first"}
        assert {key: config[key] for key in own} == own
        for metric, curve in curves[i].items():
            there = [row for row in rows if metric in row]
            written = is_finite(([row["step"] for row in there], [float(row[metric]) for row in there]))
            assert written == (is_finite(curve)[0], pytest.approx(is_finite(curve)[1]))
        assert rows[-1]["diverged"] == (i == 2)
        if i == 2:
            assert rows[-1]["diverged_at"] == diverged_at
        else:
            assert rows[-1]["final/val_loss"] == pytest.approx(final[i])


@pytest.mark.parametrize("observer", [MLflow, WandB, Trackio])
def test_missing_package_is_named_with_its_remedy(observer, monkeypatch):
    package = observer.__name__.lower()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"Writing runs needs .*\. Run: pip install 'vecsweep\[{package}\]'"):
        observer()
