"""Files that are no results, or no longer: one error for all of them, and nothing is read that is not there."""

import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs


def make_task():
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(3)]
    return vs.Task(
        nn.Linear(3, 2), batches, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), val_batches=batches
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    runs = vs.sweep(make_task(), lrs=[0.01, 0.1], vary={"momentum": [0.0, 0.9]}, num_steps=6, val_every=2)
    return runs.save(tmp_path_factory.mktemp("saved") / "runs.npz")


@pytest.fixture
def parts(saved):
    with np.load(saved) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("header"))), arrays


def write(path, header, arrays):
    np.savez_compressed(path, header=np.array(json.dumps(header)), **arrays)
    return path


def test_parts_put_together_again_are_a_result(parts, tmp_path, saved):
    again, before = vs.load(write(tmp_path / "again.npz", *parts)), vs.load(saved)
    np.testing.assert_array_equal(again.train_loss, before.train_loss)
    assert again.members == before.members


ARRAYS = ["lr", "train_loss", "evaluated_at", "metrics/val_loss", "hyper/momentum"]
WRONG = {
    "a row less": lambda a: a[:-1],
    "a member less": lambda a: a[..., :-1],
    "an axis more": lambda a: a[..., None],
    "a number": lambda a: np.array(0.5),
    "text": lambda a: np.array(["a"]),
    "complex": lambda a: a.astype(complex),
    "truth": lambda a: a.astype(bool),
    "nothing": lambda a: a[:0],
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("what", WRONG)
def test_array_of_another_shape_or_type_is_refused_at_once(name, what, parts, tmp_path):
    header, arrays = parts
    arrays[name] = WRONG[what](arrays[name])
    with pytest.raises(vs.ResultFileError, match=r"odd\.npz is damaged"):
        vs.load(write(tmp_path / "odd.npz", header, arrays))


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("value", [[], {"a": "b"}, True, -1, "x", float("inf"), 10**400], ids=lambda v: f"{v!r:.9}")
def test_member_of_another_kind_is_refused(position, value, parts, tmp_path):
    if (position, value) in [(0, -1), (1, "x")]:
        return
    header, arrays = parts
    header["members"][1][position] = value
    with pytest.raises(vs.ResultFileError, match=r"odd\.npz is damaged"):
        vs.load(write(tmp_path / "odd.npz", header, arrays))


@pytest.mark.parametrize("name", ["members", "phases", "steps_per_epoch", "engine", "duration_s", "is_complete"])
@pytest.mark.parametrize("value", [[], {}, [[]], "", 0, -1, [None]], ids=str)
def test_header_of_another_kind_is_refused_or_harmless(name, value, parts, tmp_path):
    header, arrays = parts
    header[name] = value
    path = write(tmp_path / "odd.npz", header, arrays)
    try:
        found = vs.load(path)
    except vs.ResultFileError:
        return
    use(found)


def use(runs):
    repr(runs)
    runs.records()
    runs.ranking("val_loss")
    runs.select(member=[0])
    runs.final("train_loss")


def test_damage_anywhere_is_refused_or_harmless(saved, tmp_path):
    content, random = saved.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content[: random.integers(len(content))] if random.random() < 0.3 else content)
        for i in random.integers(max(1, len(damaged)), size=random.integers(1, 4)):
            if damaged:
                damaged[i] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            found = vs.load(tmp_path / "damaged.npz")
        except vs.ResultFileError:
            continue
        use(found)


def test_file_that_claims_more_than_it_can_hold_is_not_inflated(parts, tmp_path):
    header, arrays = parts
    arrays["lr"] = np.zeros((10**8, 4), dtype=np.float32)
    path = write(tmp_path / "bomb.npz", header, arrays)
    del arrays
    tracemalloc.start()
    with pytest.raises(vs.ResultFileError, match=r"bomb\.npz is not a result of vecsweep"):
        vs.load(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_array_that_is_shorter_than_its_shape_is_not_made_room_for(saved, tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**15, 4)})
    path = tmp_path / "hollow.npz"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, head.getvalue() if name == "lr.npy" else source.read(name))
    with pytest.raises(vs.ResultFileError, match=r"hollow\.npz is not a result"):
        vs.load(path)


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for path in ("/dev/zero", tmp_path / "pipe.npz", tmp_path):
        with pytest.raises(vs.ResultFileError, match="no ordinary file"):
            vs.load(path)


# A selection of a range test, and the command line's values that come in parts.


def test_selection_of_a_grid_that_lacks_a_seed_somewhere_still_suggests():
    found = vs.range_test(make_task(), start_lr=1e-3, end_lr=1.0, num_lrs=6, num_steps=10, seeds=2)
    some = found.select(member=[0, 2, 3, 6, 9, 10])
    assert np.isnan(some.scores_by_seed).any()
    members = {member.lr: [] for member in some.members}
    for member, score in zip(some.members, some.final("train_loss"), strict=True):
        members[member.lr].append(score)
    np.testing.assert_allclose(some.scores, [np.mean(own) for own in members.values()])
    assert some.suggest().lr in some.lrs
    np.testing.assert_array_equal(found.scores, found.scores_by_seed.mean(axis=1))


@pytest.mark.parametrize("functions", [lambda lrs, losses: lrs[5], [lambda lrs, _: lrs[3], lambda lrs, _: lrs[4]]])
def test_functions_without_a_name_are_rules_too(functions):
    found = vs.lr_find(make_task(), suggest_funcs=functions, num_it=30)
    assert found._fields == tuple(f"rule_{i}" for i in range(len(found)))


def test_mistake_in_a_rule_is_told_before_the_work(monkeypatch):
    def fails(lrs, losses):
        raise RuntimeError("mine")

    monkeypatch.setattr("vecsweep.integrations.fastai.range_test", lambda *_, **__: pytest.fail("it trains"))
    for rule, error in ((fails, RuntimeError), ("valey", ValueError), (lambda lrs, _: "x", TypeError), (3, TypeError)):
        with pytest.raises(error):
            vs.lr_find(make_task(), suggest_funcs=rule)


def test_values_of_a_hyperparameter_that_is_named_twice_are_put_together(tmp_path, capsys):
    from vecsweep import cli

    again = [f"--vary=momentum={value}" for value in ("0", "0.5,0.9")]
    assert cli.main(["sweep", "digits", "--lrs", "0.1", *again, "--epochs", "1", "--output-dir", str(tmp_path)]) == 0
    capsys.readouterr()
    runs = vs.load(tmp_path / "sweep.npz")
    assert [member.hyper["momentum"] for member in runs.members] == [0.0, 0.5, 0.9]
