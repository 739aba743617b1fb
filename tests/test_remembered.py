import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep import _folders
from vecsweep._engine.caller import memory
from vecsweep._engine.ways import choices, remembered, trials
from vecsweep._engine.ways.choices import Choice, Way
from vecsweep._engine.ways.remembered import Pace, forget, recall, remember

CHOICE = Choice(Way("vectorized", 4, is_compiled=True), "measured", 0.01)
OTHER = Choice(Way("sequential", 16, is_compiled=False), "", 0.02)
SOUND = {
    "way": {"engine": "vectorized", "chunk_size": 4, "is_compiled": False},
    "why": "measured",
    "step_s": 0.01,
    "made_at": time.time(),
}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VECSWEEP_CACHE", str(tmp_path))
    monkeypatch.setattr(remembered, "_OF_PROCESS", {})
    return tmp_path


@pytest.fixture
def as_another_process(monkeypatch):
    return lambda: monkeypatch.setattr(remembered, "_OF_PROCESS", {})


def test_choice_is_remembered_by_this_process_and_by_others(folder, as_another_process):
    assert recall("a") is None
    remember("a", CHOICE)
    remember("b", OTHER)
    for _ in range(2):
        assert (recall("a"), recall("b")) == (CHOICE, OTHER)
        as_another_process()


def test_only_the_newest_choices_are_kept_on_disk(folder, as_another_process, monkeypatch):
    monkeypatch.setattr(remembered, "_MAX_REMEMBERED", 2)
    for key in "abac":
        remember(key, CHOICE)
    as_another_process()
    assert [key for key in "abc" if recall(key)] == ["a", "c"]


def test_choice_is_kept_in_the_process_where_the_disk_cannot_be_written(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("VECSWEEP_CACHE", str(folder / "file"))
    remember("a", CHOICE)
    assert recall("a") == CHOICE


def test_what_is_forgotten_is_chosen_anew_by_all(folder, as_another_process):
    remember("a", CHOICE)
    remember("b", CHOICE)
    forget("a")
    as_another_process()
    assert (recall("a"), recall("b")) == (None, CHOICE)


def test_choice_ages(folder, as_another_process, monkeypatch):
    remember("a", CHOICE)
    for days, is_known in ((29, True), (31, False), (-31, False)):
        monkeypatch.setattr(remembered.time, "time", lambda days=days: SOUND["made_at"] + days * 24 * 3600)
        assert (recall("a") is not None) == is_known


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": 1}', '{"a": {"way": {"engine": "x"}}}', "\x00", "[" * 100_000, "9" * 5000, '"\\ud800"']
)
def test_unreadable_memory_is_as_none(folder, content):
    (folder / "choices.json").write_text(content)
    assert recall("a") is None
    remember("a", CHOICE)
    assert recall("a") == CHOICE


def test_memory_that_is_no_file_of_a_sensible_size_is_not_read(folder):
    os.mkfifo(folder / "choices.json")
    assert recall("a") is None
    (folder / "choices.json").unlink()
    (folder / "choices.json").write_text(json.dumps({"a": SOUND}) + " " * 2**21)
    assert recall("a") is None


def hostile_entries():
    values = [None, 0, -1, True, 1.5, "x", [], {}, 10**400, float("nan"), float("inf"), "auto", "y" * 10**4]
    for name in SOUND:
        yield f"no {name}", {key: value for key, value in SOUND.items() if key != name}
        for value in values:
            yield f"{name} {value!r:.20}", {**SOUND, name: value}
    for name in SOUND["way"]:
        for value in values:
            yield f"{name} {value!r:.20}", {**SOUND, "way": {**SOUND["way"], name: value}}
    yield "too much", {**SOUND, "way": {**SOUND["way"], "more": 1}}


def test_sound_entry_is_taken(folder):
    (folder / "choices.json").write_text(json.dumps({"a": SOUND}))
    assert recall("a").way == Way("vectorized", 4, is_compiled=False)


def test_hostile_entries_never_crash_and_what_is_taken_is_sound(folder):
    for what, entry in hostile_entries():
        (folder / "choices.json").write_text(json.dumps({"a": entry, "b": SOUND}))
        found = recall("a")
        assert recall("b") is not None, what
        if found is not None:
            assert found.way.engine in ("vectorized", "sequential"), what
            assert type(found.way.chunk_size) is int, what
            assert found.way.chunk_size > 0, what
            assert type(found.way.is_compiled) is bool, what
            assert isinstance(found.why, str), what
            assert 0 < found.step_s < float("inf"), what


def test_hostile_chunk_size_is_not_taken(folder):
    for size in (0, -3, True, 2.0, "4"):
        entry = {**SOUND, "way": {**SOUND["way"], "chunk_size": size}}
        (folder / "choices.json").write_text(json.dumps({"a": entry}))
        assert recall("a") is None


def _remember_many(letter, folder):
    os.environ["VECSWEEP_CACHE"] = folder
    for i in range(20):
        remember(f"{letter}{i}", CHOICE)


def test_processes_do_not_lose_each_others_choices(folder):
    several = multiprocessing.get_context("fork")
    writers = [several.Process(target=_remember_many, args=(letter, str(folder))) for letter in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(json.loads((folder / "choices.json").read_text())) == 60


def test_key_has_the_allocators_setting(monkeypatch):
    before = memory.allocator_setting()
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1073741824")
    with_variable = memory.allocator_setting()
    monkeypatch.setattr(memory, "_is_kept", not memory._is_kept)
    assert len({before, with_variable, memory.allocator_setting()}) == 3


def paced(step_s, num_windows=12, *, is_exact=True):
    pace = Pace(is_exact=is_exact)
    for i in range(num_windows):
        pace.note(16 * (100 if i < 2 else step_s), 16)  # the first windows are traced and compiled
    return pace


def test_run_contradicts_what_was_measured_when_it_is_far_faster_or_slower():
    assert paced(0.001).contradicts(0.01)
    assert paced(0.1).contradicts(0.01)
    assert not paced(0.013).contradicts(0.01)
    assert not paced(0.1, num_windows=9).contradicts(0.01)  # too short to say
    assert not paced(0.1, is_exact=False).contradicts(0.01)  # loading may have taken the rest
    assert paced(0.001, is_exact=False).contradicts(0.01)


@pytest.fixture
def always_timed(folder, monkeypatch):
    monkeypatch.setattr(choices, "_SHORT_RUN", 0)
    monkeypatch.setattr(choices, "_SHORT_RUN_S", 0.0)
    return folder / "choices.json"


def sweep_small(**how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    task = vs.Task(model, batches, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    return vs.sweep(task, lrs=[0.01, 0.02, 0.05, 0.1], **{"num_steps": 240, **how})


@pytest.mark.parametrize("step_s", [1e-6, 1e3])
def test_choice_that_its_run_contradicts_is_forgotten_and_the_run_is_as_it_was(always_timed, monkeypatch, step_s):
    told = Choice(Way("vectorized", 2, is_compiled=False), "told so", 1.0)
    monkeypatch.setattr(trials, "choose", lambda timings, default: told)
    monkeypatch.setattr(Pace, "contradicts", lambda self, step_s: False)
    expected = sweep_small()
    assert len(json.loads(always_timed.read_text())) == 1
    monkeypatch.undo()
    monkeypatch.setenv("VECSWEEP_CACHE", str(always_timed.parent))
    known = json.loads(always_timed.read_text())
    (key,) = known
    known[key]["step_s"] = step_s
    always_timed.write_text(json.dumps(known))
    again = sweep_small()
    np.testing.assert_array_equal(again.train_loss, expected.train_loss)
    assert again.engine == expected.engine
    assert json.loads(always_timed.read_text()) == {}


@pytest.mark.parametrize("asked", [{"engine": "vectorized"}, {"chunk_size": 4}, {"compile": False}])
def test_remembered_way_that_was_not_asked_for_is_not_taken(always_timed, monkeypatch, asked):
    told = Choice(Way("vectorized", 10**9, is_compiled=True), "told so", 1.0)
    if "engine" in asked:
        told = Choice(Way("sequential", 4, is_compiled=False), "told so", 1.0)
    monkeypatch.setattr(trials, "recall", lambda key: told)
    assert "told so" not in sweep_small(num_steps=20, **asked).engine


def test_folders_are_the_ones_that_are_named_else_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("VECSWEEP_CACHE", "/cache")
    monkeypatch.setenv("VECSWEEP_DATA", "/data")
    assert (str(_folders.cache_folder()), str(_folders.data_root())) == ("/cache", "/data")
    monkeypatch.delenv("VECSWEEP_CACHE")
    monkeypatch.delenv("VECSWEEP_DATA")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name, appauthor: str(tmp_path / name))
    assert _folders.cache_folder() == tmp_path / "vecsweep"
    assert _folders.data_root() == tmp_path / "vecsweep" / "data"
