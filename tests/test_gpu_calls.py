"""`make gpu`: parts that have limits, and calls that go on where the last one stopped."""

import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clusters import is_alive

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def part(gpu, name, code, limit_s=60.0):
    return gpu.Part(name, ("-c", code), limit_s)


def test_call_notes_what_became_of_each_part_and_the_next_runs_none_of_them_again(gpu, tmp_path):
    parts = [
        part(gpu, "good", f"open({str(tmp_path / 'ran')!r}, 'a').write('x'); print('3 passed')"),
        part(gpu, "bad", "raise SystemExit(3)"),
        part(gpu, "empty", "raise SystemExit(5)"),
        part(gpu, "slow", "import time; time.sleep(60)", limit_s=0.5),
    ]
    for _ in range(2):
        found = gpu.run(parts, tmp_path / "notes", 60, say=lambda line: None)
        results = {name: noted["result"] for name, noted in found.items()}
        assert results == {
            "good": "passed",
            "bad": "failed (3)",
            "empty": "nothing to run",
            "slow": "took too long",
        }
    assert found["good"]["last"] == "3 passed"
    assert (tmp_path / "ran").read_text() == "x"


def test_figures_of_a_part_are_noted_after_it_also_where_it_takes_too_long(gpu, tmp_path, monkeypatch):
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(gpu, "RESULTS", results)
    old, new = {"name": "old", "step_ms": 1.0}, {"name": "new", "step_ms": 2.0, "ratios": {"stock": 3.0}}
    path = results / "a-1threads-b.json"
    path.write_text(json.dumps({"rows": [old]}))
    written = json.dumps({"rows": [old, new]})
    code = f"import pathlib, time; pathlib.Path({str(path)!r}).write_text({written!r}); time.sleep(60)"
    said = []
    gpu.run([part(gpu, "bench", code, limit_s=2.0)], tmp_path / "notes", 60, say=said.append)
    noted = json.loads((tmp_path / "notes" / "parts.json").read_text())["bench"]
    assert (noted["result"], noted["rows"]) == ("took too long", [new])
    assert "  new, step_ms 2, x stock 3" in said


def test_first_call_has_time_for_the_parts_that_tell_most_whatever_they_do(gpu):
    assert sum(part.limit_s for part in gpu.FIRST) <= 60 * 7.5
    assert gpu.PARTS[: len(gpu.FIRST)] == gpu.FIRST


def test_part_that_a_call_has_no_time_for_has_its_turn_in_the_next(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_SHORTEST_S", 0.1)
    flag = tmp_path / "flag"
    code = f"import pathlib, time; time.sleep(0 if pathlib.Path({str(flag)!r}).exists() else 60)"
    parts = [part(gpu, "first", "pass"), part(gpu, "long", code), part(gpu, "last", "pass")]
    found = gpu.run(parts, tmp_path / "notes", 2.0, say=lambda line: None)
    assert [found[name] is None for name in ("long", "last")] == [True, True]
    flag.touch()
    found = gpu.run(parts, tmp_path / "notes", 60, say=lambda line: None)
    assert {noted["result"] for noted in found.values()} == {"passed"}


def test_what_a_part_has_started_ends_with_it(gpu, tmp_path):
    pid = tmp_path / "pid"
    code = f"""import pathlib, subprocess, sys
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(pid)!r}).write_text(str(left.pid))"""
    gpu.run([part(gpu, "leaves one", code)], tmp_path / "notes", 60, say=lambda line: None)
    until_s = time.monotonic() + 60
    while is_alive(int(pid.read_text())) and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not is_alive(int(pid.read_text()))


def test_rehearsal_has_the_limits_of_the_parts(gpu):
    assert [part.rehearsal.limit_s for part in gpu.PARTS] == [part.limit_s for part in gpu.PARTS]


def test_parts_name_files_that_there_are_and_every_file_of_tests_on_a_device(gpu):
    named = {argument for part in gpu.PARTS for argument in part.arguments if argument.endswith(".py")}
    assert all((BENCH.parent / path).exists() for path in named)
    tests = BENCH.parent / "tests"
    on_device = {
        f"tests/{path.name}"
        for path in tests.glob("test_*.py")
        if path.name != Path(__file__).name
        if re.search(r'usefixtures\("device"\)|"float64", "device"|\ndef test_\w+\(.*\bdevice\b', path.read_text())
    }
    assert on_device
    assert on_device <= named


def test_each_part_has_something_to_run(gpu):
    """What parts run is collected together, once for those with the same options, and `-k` chooses from that."""
    parts = [list(part.rehearsal.arguments[2:]) for part in gpu.PARTS]
    code = """import json, sys
from collections import defaultdict
from pathlib import Path
import pytest

class Choosing:
    def __init__(self, parts):
        self.parts = parts

    def pytest_collection_finish(self, session):
        for files, words in self.parts:
            items = [item for item in session.items if item.path in map(Path.absolute, map(Path, files))]
            session.config.option.keyword = words
            session.config.hook.pytest_collection_modifyitems(session=session, config=session.config, items=items)
            print("NUM", len(items), files, words)

sys.path.insert(0, "bench")
by_options = defaultdict(list)
for arguments in json.loads(sys.argv[1]):
    words = arguments.pop(arguments.index("-k") + 1) if "-k" in arguments else ""
    options = tuple(word for word in arguments if not word.endswith(".py") and word != "-k")
    by_options[options].append(([word for word in arguments if word.endswith(".py")], words))
for options, own in by_options.items():
    files = sorted({file for files, _ in own for file in files})
    pytest.main([*files, *options, "--collect-only", "-q", "-p", "no:cacheprovider"], plugins=[Choosing(own)])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(parts)], cwd=BENCH.parent, capture_output=True, text=True, check=True
    )
    found = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if line.startswith("NUM")]
    assert len(found) == len(gpu.PARTS)
    assert not [arguments for num, arguments in found if num == "0"]


def test_code_that_is_changed_starts_anew(gpu, tmp_path):
    for folder in ("kernels", "vecsweep", "tests", "bench"):
        (tmp_path / folder).mkdir()
    source = tmp_path / "kernels" / "a.py"
    source.write_text("1")
    before = gpu.digest(tmp_path)
    assert gpu.digest(tmp_path) == before
    source.write_text("2")
    assert gpu.digest(tmp_path) != before


def test_machine_without_a_gpu_is_told_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 1
    assert "PyTorch sees no GPU here" in capsys.readouterr().out
