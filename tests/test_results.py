"""Results: what the curves say, and files that hold them."""

import dataclasses
import errno
import json
import os
import pickle
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vecsweep as vs
from vecsweep.results import MemberRecord
from vecsweep.suggest import RULES, smooth, suggest, valley

NAN = np.nan


def make_sweep(losses, *, lrs=None, seeds=None, diverged_at=None, schedule="constant", **fields):
    """A sweep with these losses, `[step, member]`."""
    losses = np.asarray(losses, dtype=float)
    num_steps, num_members = losses.shape
    lrs = np.geomspace(0.01, 1.0, num_members).tolist() if lrs is None else lrs
    seeds = [0] * num_members if seeds is None else seeds
    diverged_at = [None] * num_members if diverged_at is None else diverged_at
    rows = zip(lrs, [schedule] * num_members, seeds, diverged_at, strict=True)
    common = {
        "members": tuple(MemberRecord(*row) for row in rows),
        "lr": np.tile(lrs, (num_steps, 1)),
        "train_loss": losses,
        "steps_per_epoch": None,
        "engine": "by hand",
        "duration_s": 0.25,
    }
    kind = vs.RangeTest if "method" in fields else vs.Sweep
    return kind(**(common | fields))


def make_grid(losses, **fields):
    return make_sweep(losses, method="grid", **fields)


def make_ramp(losses, lrs, end_lr=10.0, **fields):
    """A ramp up to `end_lr` that came as far as `lrs`, with these losses, `[step, seed]`."""
    num_seeds = np.shape(losses)[1]
    return make_sweep(
        losses,
        lrs=[end_lr] * num_seeds,
        seeds=list(range(num_seeds)),
        lr=np.tile(np.asarray(lrs, dtype=float)[:, None], (1, num_seeds)),
        schedule="ramp",
        method="ramp",
        **fields,
    )


RESULTS = {
    "sweep": lambda: make_sweep([[2.0, 2.0], [1.0, 1.5], [0.1 + 0.2, 1e-300]]),
    "diverged": lambda: make_sweep([[2.0, 2.0], [1.0, np.inf], [0.5, NAN]], diverged_at=[None, 1]),
    "epochs": lambda: make_sweep([[2.0], [1.0], [0.5]], steps_per_epoch=2.5),
    "interrupted": lambda: make_sweep([[2.0], [1.0]], is_complete=False),
    "grid": lambda: make_grid(
        [[2.0, 2.1, 2.0, 2.1], [1.0, 1.1, 9.0, NAN]],
        lrs=[0.1, 0.1, 1.0, 1.0],
        seeds=[3, 7, 3, 7],
        diverged_at=[None, None, 1, 0],
    ),
    "interrupted-grid": lambda: make_grid([[2.0, 2.1]], is_complete=False),
    "ramp": lambda: make_ramp([[2.0, 2.1], [1.0, 1.1], [9.0, NAN]], [1e-3, 1 / 3, 10.0], diverged_at=[2, 1]),
}


def assert_equal(a, b):
    """Every field of two results is of one type and one value; but for the weights."""
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        own, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "_trained":
            continue
        assert type(own) is type(other), field.name
        if isinstance(own, np.ndarray):
            assert own.dtype == other.dtype
            np.testing.assert_array_equal(own, other)
        elif field.name in ("metrics", "hyper"):
            assert list(own) == list(other)
            for name, values in own.items():
                np.testing.assert_array_equal(values, other[name])
        else:
            assert own == other, field.name
    assert [[type(x) for x in m] for m in a.members] == [[type(x) for x in m] for m in b.members]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def change_header(path, remove=(), **changes):
    """Rewrite a file's header, as another version of vecsweep might have written it."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header"))) | changes
    np.savez_compressed(path, header=json.dumps({k: v for k, v in header.items() if k not in remove}), **arrays)


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("how", ["own class", "any kind"])
def test_saved_result_comes_back_field_for_field(name, how, tmp_path):
    result = RESULTS[name]()
    path = result.save(tmp_path / "result.npz")
    assert_equal(result, type(result).load(path) if how == "own class" else vs.load(path))


def test_result_of_a_run_comes_back_field_for_field(tmp_path):
    model = nn.Linear(3, 1)
    batches = [(torch.ones(4, 3), torch.zeros(4, 1))]
    task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
    runs = vs.sweep(task, lrs=[0.01, 1e6], seeds=2, epochs=20)
    assert any(m.diverged_at is not None for m in runs.members)
    assert_equal(runs, vs.Sweep.load(runs.save(tmp_path / "runs.npz")))
    for method in ("grid", "ramp"):
        found = vs.range_test(task, num_steps=12, seeds=np.array([5, 2]), method=method)
        assert_equal(found, vs.RangeTest.load(found.save(tmp_path / "found.npz")))


@pytest.mark.parametrize(
    ("given", "written"),
    [("digits", "digits.npz"), ("digits.npz", "digits.npz"), ("digits.v2", "digits.v2"), ("digits.dat", "digits.dat")],
)
def test_suffix_is_added_where_there_is_none_and_found_again(given, written, tmp_path):
    result = RESULTS["grid"]()
    assert result.save(str(tmp_path / given)) == tmp_path / written
    assert names_in(tmp_path) == [written]
    assert_equal(vs.load(str(tmp_path / given)), result)
    assert_equal(vs.RangeTest.load(tmp_path / given), result)


def test_file_without_suffix_is_read_as_it_is(tmp_path):
    RESULTS["sweep"]().save(tmp_path / "runs")
    RESULTS["grid"]().save(tmp_path / "other.npz").rename(tmp_path / "runs")
    assert_equal(vs.load(tmp_path / "runs"), RESULTS["grid"]())


def test_relative_path_is_taken_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_equal(vs.load(RESULTS["sweep"]().save("runs.npz")), RESULTS["sweep"]())
    assert names_in(tmp_path) == ["runs.npz"]


def test_file_that_is_there_is_replaced(tmp_path):
    path = RESULTS["sweep"]().save(tmp_path / "runs.npz")
    RESULTS["grid"]().save(path)
    assert_equal(vs.load(path), RESULTS["grid"]())
    assert names_in(tmp_path) == ["runs.npz"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt("stopped")], ids=type
)
@pytest.mark.parametrize("before", ["a file", "no file"])
def test_failure_in_the_middle_of_writing_leaves_the_folder_as_it_was(error, before, tmp_path, monkeypatch):
    path = tmp_path / "runs.npz"
    if before == "a file":
        RESULTS["sweep"]().save(path)
    content = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def write_half(file, **arrays):
        file.write(b"PK half of it")
        file.flush()
        assert len(names_in(tmp_path)) == len(content) + 1, "it is written beside the file"
        raise error

    monkeypatch.setattr(np, "savez_compressed", write_half)
    with pytest.raises(type(error), match=r"No space left|stopped"):
        RESULTS["grid"]().save(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == content


def test_failure_to_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OSError, match=r"folder\.npz"):
        RESULTS["sweep"]().save(tmp_path / "folder.npz")
    assert names_in(tmp_path) == ["folder.npz"]


def test_saved_file_may_be_read_by_whoever_may_read_other_new_files(tmp_path):
    """The files of `tempfile` are their owner's alone, which a shared folder of results is not for."""
    (tmp_path / "other").write_bytes(b"")
    path = RESULTS["sweep"]().save(tmp_path / "runs.npz")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("folder", ["missing", "missing/deeper", "~"])
def test_folder_that_does_not_exist_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no such folder; make it first: '{folder}'") as caught:
        RESULTS["sweep"]().save(f"{folder}/runs.npz")
    assert caught.value.errno == errno.ENOENT
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("read", [vs.load, vs.Sweep.load, vs.RangeTest.load])
@pytest.mark.parametrize("name", ["missing.npz", "missing"])
def test_missing_file_is_named(read, name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*missing\.npz'"):
        read(tmp_path / name)


def test_missing_file_with_a_suffix_is_not_looked_for_under_another(tmp_path):
    RESULTS["sweep"]().save(tmp_path / "runs.npz")
    with pytest.raises(FileNotFoundError, match=r"runs\.dat"):
        vs.load(tmp_path / "runs.dat")


def test_file_cut_off_anywhere_is_refused(tmp_path):
    content = RESULTS["ramp"]().save(tmp_path / "whole.npz").read_bytes()
    for size in range(len(content)):
        (tmp_path / "cut.npz").write_bytes(content[:size])
        with pytest.raises(vs.ResultFileError, match=r"cut\.npz is not a result of vecsweep, or it is damaged"):
            vs.load(tmp_path / "cut.npz")


def test_file_with_a_flipped_byte_is_refused_or_read_right(tmp_path):
    """A zip archive stores some things twice; a flip in the copy that is not read harms nothing."""
    result = RESULTS["ramp"]()
    content = result.save(tmp_path / "whole.npz").read_bytes()
    num_refused = 0
    for i in range(len(content)):
        flipped = bytearray(content)
        flipped[i] ^= 0xFF
        (tmp_path / "flipped.npz").write_bytes(flipped)
        try:
            assert_equal(vs.load(tmp_path / "flipped.npz"), result)
        except vs.ResultFileError:
            num_refused += 1
    assert num_refused > len(content) / 2


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(1000))


def text(path):
    path.write_text("lr,loss\n0.1,2.3\n")


def empty(path):
    path.write_bytes(b"")


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def foreign_archive(path):
    np.savez(path, weights=np.ones(3))


def foreign_header(path):
    np.savez(path, header=np.ones(3), lr=np.ones(3))


def header_of_another_program(path):
    np.savez(path, header=json.dumps({"format": "other", "version": 1, "kind": "Sweep"}))


def header_that_is_a_list(path):
    np.savez(path, header=json.dumps(["vecsweep"]))


def torch_checkpoint(path):
    torch.save({"weight": torch.ones(3)}, path)


@pytest.mark.parametrize("read", [vs.load, vs.Sweep.load, vs.RangeTest.load])
@pytest.mark.parametrize(
    "write",
    [
        garbage,
        text,
        empty,
        one_array,
        foreign_archive,
        foreign_header,
        header_of_another_program,
        header_that_is_a_list,
        torch_checkpoint,
    ],
)
def test_file_that_is_no_result_is_refused(read, write, tmp_path):
    write(tmp_path / "other.npz")
    with pytest.raises(vs.ResultFileError, match=r"other\.npz is not a result of vecsweep, or it is damaged\. Pass"):
        read(tmp_path / "other.npz")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def trap_as_pickle(path, trap):
    path.write_bytes(pickle.dumps(trap))


def trap_as_npy(path, trap):
    with path.open("wb") as file:
        np.save(file, np.array([trap]))


def trap_in_an_array(path, trap):
    RESULTS["grid"]().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"lr": np.array([trap])}))


def trap_in_the_header(path, trap):
    RESULTS["grid"]().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"header": np.array(trap)}))


def trap_in_an_array_too_many(path, trap):
    RESULTS["grid"]().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays, extra=np.array([trap]))


@pytest.mark.parametrize("read", [vs.load, vs.Sweep.load, vs.RangeTest.load])
@pytest.mark.parametrize(
    "write", [trap_as_pickle, trap_as_npy, trap_in_an_array, trap_in_the_header, trap_in_an_array_too_many]
)
def test_nothing_in_a_file_is_run(read, write, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.npz"
    write(path, Trap(marker))
    with pytest.raises(vs.ResultFileError, match=r"evil\.npz is not a result of vecsweep"):
        read(path)
    assert not marker.exists()
    unpickled = np.load(path, allow_pickle=True)
    for name in getattr(unpickled, "files", ()):
        unpickled[name]
    assert marker.exists(), "the trap works, for those who do unpickle"
    getattr(unpickled, "close", lambda: None)()


@pytest.mark.parametrize("name", RESULTS)
def test_file_of_the_other_kind_is_refused(name, tmp_path):
    result = RESULTS[name]()
    path = result.save(tmp_path / "result.npz")
    other = vs.Sweep if isinstance(result, vs.RangeTest) else vs.RangeTest
    with pytest.raises(vs.ResultFileError, match=f"holds a {type(result).__name__}, not a {other.__name__}"):
        other.load(path)


@pytest.mark.parametrize("changes", [{}, {"kind": "KindOfTheFuture"}, {"members": "elsewhere"}], ids=str)
@pytest.mark.parametrize("read", [vs.load, vs.RangeTest.load])
def test_file_of_a_later_version_says_so_whatever_else_it_holds(changes, read, tmp_path):
    path = RESULTS["grid"]().save(tmp_path / "late.npz")
    change_header(path, version=3, **changes)
    with pytest.raises(vs.ResultFileError, match="format version 3; this vecsweep reads 2"):
        read(path)


@pytest.mark.parametrize("kind", ["Suggestion", ["Sweep"], None], ids=str)
def test_file_of_an_unknown_kind_is_refused(kind, tmp_path):
    path = RESULTS["grid"]().save(tmp_path / "odd.npz")
    change_header(path, kind=kind)
    with pytest.raises(vs.ResultFileError, match=r"odd\.npz is not a result of vecsweep"):
        vs.load(path)


@pytest.mark.parametrize("name", ["members", "engine", "steps_per_epoch", "duration_s", "is_complete", "method"])
def test_file_that_lacks_a_field_is_refused(name, tmp_path):
    path = RESULTS["grid"]().save(tmp_path / "poor.npz")
    change_header(path, remove=[name])
    with pytest.raises(vs.ResultFileError, match=rf"poor\.npz is damaged: '{name}'"):
        vs.load(path)


@pytest.mark.parametrize("members", [[[0.1, "constant"]], [3], 3], ids=str)
def test_file_whose_members_have_other_columns_is_refused(members, tmp_path):
    path = RESULTS["sweep"]().save(tmp_path / "odd.npz")
    change_header(path, members=members)
    with pytest.raises(vs.ResultFileError, match=r"odd\.npz is damaged"):
        vs.load(path)


@pytest.mark.parametrize("name", ["lr", "train_loss"])
def test_file_that_lacks_an_array_is_refused(name, tmp_path):
    path = RESULTS["sweep"]().save(tmp_path / "poor.npz")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if key != name}
    np.savez(path, **arrays)
    with pytest.raises(vs.ResultFileError, match=rf"poor\.npz is damaged: '{name}'"):
        vs.load(path)


def test_records_are_a_row_for_each_member_metric_and_step():
    runs = make_sweep([[2.0, 3.0], [1.0, 2.5]], lrs=[0.1, 0.2], seeds=[4, 9])
    expected = [
        (0, 0.1, 4, 0, "train_loss", 2.0),
        (0, 0.1, 4, 1, "train_loss", 1.0),
        (0, 0.1, 4, 0, "lr", 0.1),
        (0, 0.1, 4, 1, "lr", 0.1),
        (1, 0.2, 9, 0, "train_loss", 3.0),
        (1, 0.2, 9, 1, "train_loss", 2.5),
        (1, 0.2, 9, 0, "lr", 0.2),
        (1, 0.2, 9, 1, "lr", 0.2),
    ]
    names = ("member", "lr", "seed", "step", "metric", "value")
    rest = {"schedule": "constant", "epoch": None, "diverged": False}
    assert runs.records() == [dict(zip(names, row, strict=True)) | rest for row in expected]


def test_records_of_a_ramp_hold_the_lr_of_each_step_and_the_lr_it_ends_at():
    rows = make_ramp([[2.0], [1.0], [0.5]], [0.1, 1.0, 10.0]).records()
    assert [row["value"] for row in rows if row["metric"] == "lr"] == [0.1, 1.0, 10.0]
    assert {row["lr"] for row in rows} == {10.0}
    assert {row["schedule"] for row in rows} == {"ramp"}


def test_records_of_a_member_end_at_the_step_where_it_diverged():
    rows = make_sweep([[2.0, 2.0], [1.0, 9.0], [0.5, NAN]], diverged_at=[None, 1]).records()
    assert len(rows) == 2 * 3 + 2 * 2
    own = [row for row in rows if row["member"] == 1 and row["metric"] == "train_loss"]
    assert [(row["step"], row["value"], row["diverged"]) for row in own] == [(0, 2.0, False), (1, 9.0, True)]
    assert not any(row["diverged"] for row in rows if row["member"] == 0)


@pytest.mark.parametrize(("steps_per_epoch", "epochs"), [(2.0, [0, 0, 1, 1, 2]), (2.5, [0, 0, 0, 1, 1])])
def test_records_count_epochs_where_their_length_is_known(steps_per_epoch, epochs):
    rows = make_sweep(np.ones((5, 1)), steps_per_epoch=steps_per_epoch).records()
    assert [row["epoch"] for row in rows if row["metric"] == "train_loss"] == epochs


@pytest.mark.parametrize(("num_batches", "accumulated"), [(10, 3), (7, 3), (11, 10), (49, 10), (100, 7)])
def test_step_that_begins_an_epoch_is_of_it_also_where_epochs_are_no_whole_steps(num_batches, accumulated):
    runs = make_sweep(np.ones((500, 1)), steps_per_epoch=num_batches / accumulated)
    epochs = [row["epoch"] for row in runs.records() if row["metric"] == "train_loss"]
    assert epochs == [step * accumulated // num_batches for step in range(500)]


def test_table_of_curves_is_utf8_whatever_the_locale(tmp_path, monkeypatch):
    write, latin = Path.open, {"encoding": "latin-1"}  # as some systems have it where nothing is said
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **how: write(path, mode, **({} if "b" in mode else latin) | how)
    )
    path = make_sweep([[1.0]], schedule="décroît").to_csv(tmp_path / "runs.csv")
    assert "décroît" in path.read_bytes().decode()


@pytest.mark.parametrize("name", RESULTS)
def test_records_are_the_same_from_a_file(name, tmp_path):
    result = RESULTS[name]()
    rows, again = result.records(), vs.load(result.save(tmp_path / "result.npz")).records()
    assert str(rows) == str(again), "as text, in which NaN equals NaN"


def test_records_hold_only_what_json_holds():
    assert json.loads(json.dumps(make_sweep([[2.0], [1.0]]).records()))[1]["value"] == 1.0


@pytest.mark.parametrize(("num_steps", "num_last"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (105, 10)])
def test_score_of_a_grid_is_the_mean_of_the_last_tenth_of_losses(num_steps, num_last):
    losses = np.arange(num_steps, 0.0, -1)[:, None] ** 2 * [1.0, 3.0]
    expected = sum(k**2 for k in range(1, num_last + 1)) / num_last
    np.testing.assert_allclose(make_grid(losses).scores, [expected, 3 * expected], rtol=1e-14)


def test_score_is_nan_where_a_member_diverged_also_at_its_last_step():
    found = make_grid([[2.0, 2.0, 2.0], [1.0, 9.0, NAN]], diverged_at=[None, 1, 0])
    np.testing.assert_array_equal(found.scores, [1.0, NAN, NAN])


def test_score_of_a_grid_is_the_mean_over_seeds_and_nan_where_one_diverged():
    found = make_grid(
        [[1.0, 2.0, 4.0, 8.0, 16.0, NAN]],
        lrs=[0.1, 0.1, 0.2, 0.2, 0.3, 0.3],
        seeds=[5, 8] * 3,
        diverged_at=[None] * 5 + [0],
    )
    np.testing.assert_array_equal(found.lrs, [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(found.scores_by_seed, [[1.0, 2.0], [4.0, 8.0], [16.0, NAN]])
    np.testing.assert_array_equal(found.scores, [1.5, 6.0, NAN])


def test_score_of_a_ramp_is_the_loss_of_each_step_over_seeds():
    found = make_ramp([[2.0, 4.0], [1.0, 2.0], [8.0, 99.0], [0.5, NAN]], [1e-3, 1e-2, 0.1, 1.0], diverged_at=[None, 2])
    np.testing.assert_array_equal(found.lrs, [1e-3, 1e-2, 0.1, 1.0])
    np.testing.assert_array_equal(found.scores_by_seed, found.train_loss)
    np.testing.assert_array_equal(found.scores, [3.0, 1.5, 53.5, NAN])


def test_interrupted_ramp_has_the_lrs_that_it_came_to():
    found = make_ramp([[2.0], [1.0]], [1e-3, 1e-2], is_complete=False)
    np.testing.assert_array_equal(found.lrs, [1e-3, 1e-2])
    np.testing.assert_array_equal(found.scores, [2.0, 1.0])


def test_repeated_lr_counts_once():
    """So narrow a range that neighbours round to one number; the members of one lr and seed are the same."""
    found = make_grid([[1.0, 2.0, 5.0, 6.0, 5.0, 6.0]], lrs=[0.1, 0.1, 0.2, 0.2, 0.2, 0.2], seeds=[0, 1] * 3)
    np.testing.assert_array_equal(found.lrs, [0.1, 0.2])
    np.testing.assert_array_equal(found.scores, [1.5, 5.5])
    assert found.suggest().lr == 0.1


def test_suggestion_for_a_longer_run_is_shifted_by_what_is_known_and_says_so():
    lrs = np.geomspace(1e-4, 1, 9)
    found = make_grid([np.abs(np.log10(lrs) + 2) + 1], lrs=lrs.tolist())
    here, num_steps = found.suggest().lr, len(found.train_loss)
    longer = found.suggest(horizon=32 * num_steps)
    assert longer.lr == pytest.approx(here / 4)
    assert longer.rule == f"basin, times 0.25 for {32 * num_steps} steps of 'constant'"
    assert longer.loss == pytest.approx(np.interp(np.log(longer.lr), np.log(lrs), found.scores))
    annealed = found.suggest("lowest", horizon=num_steps, schedule="cosine")
    assert annealed.lr == pytest.approx(found.suggest("lowest").lr * 10**0.3)
    assert found.suggest(horizon=num_steps, schedule=lambda progress: 1 - progress / 4).lr == pytest.approx(here)
    with pytest.raises(ValueError, match="`horizon` belongs to grids"):
        make_ramp(np.ones((9, 1)), lrs).suggest(horizon=100)
    with pytest.raises(ValueError, match="`horizon` must be a whole number"):
        found.suggest(horizon=0)


NOISY = np.array([2.3, 2.2, 2.3, 2.1, 1.8, 1.9, 1.2, 0.8, 0.95, 0.7, 1.4, 3.0])
LRS = np.geomspace(1e-5, 1.0, 12)


def test_suggestion_for_a_grid_is_the_centre_of_its_basin():
    """Beside the lowest, 0.7, the two before it are within three tolerances of what training gains, 1.6, or not."""
    found = make_grid([NOISY], lrs=LRS.tolist())
    assert found.suggest("lowest").lr == LRS[9]
    answer = found.suggest()
    assert (answer.rule, answer.lr) == ("basin", pytest.approx(LRS[9]))  # 0.95 is 16 % behind, and alone
    close = NOISY.copy()
    close[8] = 0.7 + 0.02 * 1.6
    weights = np.array([np.exp(-1), 1.0])
    expected = np.exp((weights * np.log(LRS[8:10])).sum() / weights.sum())
    assert make_grid([close], lrs=LRS.tolist()).suggest().lr == pytest.approx(expected)


def test_suggestion_for_a_ramp_is_a_tenth_of_where_its_smoothed_scores_are_lowest():
    """Read as fastai reads it: without the first tenth and the last five points."""
    found = make_ramp(NOISY[:, None], LRS)
    own = slice(len(LRS) // 10, -5)
    assert found.suggest().lr == LRS[own][smooth(NOISY, 0.8)[own].argmin()] / 10
    assert found.suggest("valley").lr == valley(LRS[own], smooth(NOISY, 0.8)[own])
    assert found.suggest("valley", smoothing=0.0).lr == valley(LRS[own], NOISY[own])
    assert found.suggest("third_of_largest_stable", smoothing=0.0) == suggest(LRS, NOISY, "third_of_largest_stable")


def test_suggestion_for_a_ramp_of_several_seeds_is_the_mean_of_theirs_in_log_lr():
    curves = np.stack([NOISY, np.roll(NOISY, 2), NOISY[::-1]], axis=1)
    found = make_ramp(curves, LRS)
    of_seeds = [make_ramp(curves[:, [seed]], LRS).suggest().lr for seed in range(3)]
    assert found.suggest().lr == pytest.approx(np.prod(of_seeds) ** (1 / 3))
    assert found.suggest().rule == "minimum"


@pytest.mark.parametrize("method", ["grid", "ramp"])
def test_rule_may_be_named_or_a_function_of_lrs_and_scores(method):
    found = make_grid([NOISY], lrs=LRS.tolist()) if method == "grid" else make_ramp(NOISY[:, None], LRS)
    seen = []

    def third(lrs, losses):
        seen.append((lrs, losses))
        return lrs[2]

    answer = found.suggest(third, smoothing=0.0)
    own = slice(None) if method == "grid" else slice(len(LRS) // 10, -5)
    assert (answer.rule, answer.lr) == ("third", LRS[own][2])
    np.testing.assert_array_equal(seen[0][0], LRS[own])
    np.testing.assert_array_equal(seen[0][1], NOISY[own])
    assert found.suggest("lowest", smoothing=0.0).lr == suggest(LRS[own], NOISY[own], "lowest").lr
    with pytest.raises(ValueError, match=r"`rule` must be one of .*Did you mean 'steepest'"):
        found.suggest("steep")


@pytest.mark.parametrize("rule", ["valley", "slide", "steepest", "minimum", valley])
def test_rules_that_read_ramps_are_refused_on_a_grid(rule):
    with pytest.raises(ValueError, match=r"reads ramps.*Take 'lowest' or 'basin'"):
        make_grid([NOISY], lrs=LRS.tolist()).suggest(rule)
    assert make_ramp(NOISY[:, None], LRS).suggest(rule).lr > 0


@pytest.mark.parametrize(("method", "has_all"), [("grid", False), ("ramp", True)])
def test_rules_that_can_read_it_are_named(method, has_all):
    found = make_grid([NOISY], lrs=LRS.tolist()) if method == "grid" else make_ramp(NOISY[:, None], LRS)
    assert {"lowest", "basin", "third_of_largest_stable"} <= set(found.rules) <= set(RULES)
    assert (set(found.rules) == set(RULES)) == has_all
    assert all(found.suggest(rule).rule == rule for rule in found.rules)


def test_suggestion_passes_over_what_diverged():
    found = make_grid([[2.0, 1.0, 0.1]], lrs=[0.1, 0.2, 0.3], diverged_at=[None, None, 0])
    assert found.suggest().lr == 0.2


def test_suggestion_is_refused_where_every_lr_diverged():
    found = make_grid([[2.0, 1.0]], diverged_at=[0, 0])
    with pytest.raises(ValueError, match="every learning rate diverged"):
        found.suggest()


def test_best_member_has_the_lowest_last_losses_and_did_not_diverge():
    losses = np.ones((20, 4)) * [3.0, 2.0, 1.0, 2.5]
    losses[:18, 1] = 9.0  # only the last tenth counts
    losses[19, 3] = 0.0  # and not its last loss alone: (2.5 + 0) / 2 is below the others
    assert make_sweep(losses, diverged_at=[None, None, 19, None]).best() == 3
    assert make_sweep(losses, diverged_at=[None, None, 19, 5]).best() == 1
    assert make_sweep(losses).best() == 2


def test_best_member_is_refused_where_all_diverged():
    runs = make_sweep([[2.0, 1.0]], lrs=[0.3, 0.02], diverged_at=[0, 0])
    with pytest.raises(ValueError, match=r"all 2 diverged\. Lower the learning rates; the smallest was 0\.02"):
        runs.best()


def test_diverged_at_is_a_step_for_each_member_and_minus_one_for_none():
    runs = make_sweep(np.ones((9, 3)), diverged_at=[None, 0, 8])
    assert runs.diverged_at.tolist() == [-1, 0, 8]
    assert runs.diverged_at.dtype == np.int64


def test_member_is_counted_from_either_end():
    models = {0: nn.Linear(1, 1), 1: nn.Linear(1, 1)}
    runs = make_sweep(np.ones((1, 2)), _trained=types.SimpleNamespace(model=lambda i, **_: models[i]))
    assert [runs.model(i) for i in (0, 1, -1, -2)] == [models[0], models[1], models[1], models[0]]
    for i in (2, -3):
        with pytest.raises(IndexError, match=f"`i` must be one of the 2 members; got {i}"):
            runs.model(i)


def test_model_of_a_loaded_result_is_refused(tmp_path):
    runs = make_sweep(np.ones((1, 2)), _trained=types.SimpleNamespace(model=lambda i, **_: nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="a file does not hold them"):
        vs.load(runs.save(tmp_path / "runs.npz")).model(0)


@pytest.mark.parametrize(
    "chosen", [range(1, 3), {0.1, 1.0}, (rate for rate in (0.1, 1.0)), np.array([0.1, 1.0])], ids=type
)
def test_members_are_selected_by_any_collection(chosen):
    runs = make_sweep(np.ones((1, 3)))
    own = runs.select(member=chosen) if isinstance(chosen, range) else runs.select(lr=chosen)
    assert [member.lr for member in own.members] == [0.1, 1.0]
    with pytest.raises(ValueError, match=r"`lr` must be one that members have; got none\. There is 0\.01, 0\.1, 1"):
        runs.select(lr=[])


def test_model_of_a_range_test_is_refused():
    model = nn.Linear(3, 1)
    batches = [(torch.ones(4, 3), torch.zeros(4, 1))]
    task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match=r"a range test keeps none.*vecsweep\.sweep"):
        vs.range_test(task, num_lrs=2, num_steps=2).model(0)


@pytest.mark.parametrize("name", ["sweep", "grid"])
def test_fields_of_a_result_cannot_be_assigned(name):
    result = RESULTS[name]()
    for field in dataclasses.fields(result):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{field.name}'"):
            setattr(result, field.name, None)
    with pytest.raises(AttributeError, match="can't set attribute"):
        result.members[0].lr = 3.0


def test_results_can_be_told_apart_and_kept_in_sets():
    a, b = RESULTS["grid"](), RESULTS["grid"]()
    assert a != b
    assert b in [a, b]
    assert len({a, b, a}) == 2


def test_what_a_killed_process_left_of_a_file_is_removed_by_a_later_save(tmp_path):
    left = [tmp_path / f".runs.npz.{k * 32}" for k in "ab"]
    others = [tmp_path / ".runs.npz.backup", tmp_path / f".other.npz.{'a' * 32}"]
    for path in (*left, *others):
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    os.utime(left[1])  # this one may still be written
    RESULTS["sweep"]().save(tmp_path / "runs.npz")
    assert not left[0].exists()
    assert all(path.exists() for path in (left[1], *others))


def test_weights_that_cannot_be_written_are_an_os_error(tmp_path, monkeypatch):
    import safetensors.torch

    def full(*_):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model = nn.Linear(3, 1)
    batches = [(torch.ones(4, 3), torch.zeros(4, 1))]
    task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
    runs = vs.sweep(task, lrs=[0.1], num_steps=2)
    monkeypatch.setattr(safetensors.torch, "save_model", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*best\.safetensors'") as caught:
        runs.save_model(0, tmp_path / "best")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
