"""The wheel: what is in it and what it asks for; and what importing the package does to a process, which is nothing."""

import configparser
import email
import json
import shutil
import subprocess
import sys
import textwrap
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vecsweep as vs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built in a copy of the checkout, so that nothing appears in the checkout itself."""
    folder = tmp_path_factory.mktemp("wheel")
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, folder / "source", ignore=leave_out)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", "wheels", "./source"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (folder / "wheels").iterdir()
    with zipfile.ZipFile(path) as file:
        yield file


def read(wheel, name):
    """The text of a file of the wheel's own folder."""
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


@pytest.fixture(scope="session")
def metadata(wheel):
    return email.message_from_string(read(wheel, "METADATA"))


def test_wheel_holds_every_module_of_the_checkout_and_no_other(wheel):
    """A package that `pyproject.toml` does not list would be missing here, and only here."""
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vecsweep").rglob("*.py")}
    hot = {f"vecsweep/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    assert {"vecsweep/__init__.py", "vecsweep/_engine/run.py"} <= own
    assert {"vecsweep/kernels/rules/attention.py", "vecsweep/kernels/updates/adam.py"} <= hot
    assert {name for name in wheel.namelist() if name.endswith(".py")} == own | hot


def test_wheel_installs_one_package_and_no_kernels_beside_it(wheel):
    """A top-level `kernels` would overwrite the package of that name that many users have."""
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"vecsweep"}
    assert read(wheel, "top_level.txt").split() == ["vecsweep"]


def test_wheel_is_marked_as_typed(wheel):
    assert "vecsweep/py.typed" in wheel.namelist()


def test_wheel_holds_what_reports_are_drawn_with(wheel):
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vecsweep" / "report" / "page").iterdir()}
    assert len(own) == 7
    assert own <= set(wheel.namelist())


def test_wheel_holds_the_licence(wheel):
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_command_is_installed_and_names_a_function_that_exists(wheel):
    scripts = configparser.ConfigParser()
    scripts.read_string(read(wheel, "entry_points.txt"))
    assert dict(scripts["console_scripts"]) == {"vecsweep": "vecsweep.__main__:command"}
    assert callable(EntryPoint("vecsweep", "vecsweep.__main__:command", "console_scripts").load())


def test_core_requirements_are_eight(metadata):
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert {r.name for r in required if r.marker is None} == {
        *("torch", "numpy", "matplotlib", "tqdm"),
        "safetensors",  # trained models are saved with it
        "scipy",  # has Student's t, for rankings
        "platformdirs",  # knows the user's cache folder
        "filelock",  # holds processes that write there apart; torch needs it, too
    }
    assert all("extra" in str(r.marker) for r in required if r.marker is not None)


def test_version_is_the_same_in_the_wheel_and_in_python(metadata):
    assert metadata["Version"] == vs.__version__


WATCH = """
    import importlib.util, json, logging, os, random, signal, sys, threading, warnings
    import numpy as np
    import torch

    warnings.simplefilter("error")

    def look():
        state = {
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "default_dtype": torch.get_default_dtype(),
            "default_device": torch.get_default_device(),
            "grad_mode": torch.is_grad_enabled(),
            "inference_mode": torch.is_inference_mode_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
            "torch_random_state": torch.get_rng_state().tolist(),
            "numpy_random_state": np.random.get_state(),
            "python_random_state": random.getstate(),
            "log_handlers": logging.root.handlers,
            "own_log_handlers": logging.getLogger("vecsweep").handlers,
            "log_level": (logging.root.level, logging.getLogger("vecsweep").level),
            "warning_filters": warnings.filters,
            "show_warning": warnings.showwarning,
            "except_hook": sys.excepthook,
            "ctrl_c": signal.getsignal(signal.SIGINT),
            "num_python_threads": threading.active_count(),
            "environment": dict(os.environ),
            "path": sys.path,
            "working_folder": os.getcwd(),
        }
        return {name: repr(value) for name, value in state.items()}

    before, modules = look(), set(sys.modules)
    import vecsweep
    for name in vecsweep.__all__:
        getattr(vecsweep, name)
    after, new = look(), set(sys.modules) - modules
    import vecsweep.kernels, vecsweep.tasks, vecsweep.cli
    spec = importlib.util.find_spec("kernels")
    facts = {
        "before": before,
        "after": after,
        "new": sorted(new),
        "all": sorted(sys.modules),
        "homes": [os.path.dirname(vecsweep.__file__), os.path.dirname(vecsweep.kernels.__file__)],
        "kernels": None if spec is None else spec.origin,
    }
    print(json.dumps(facts))
"""


@pytest.fixture(scope="session", params=["from the wheel", "as installed here"])
def imported(request, tmp_path_factory):
    """What a fresh process in another folder saw when it imported the package."""
    folder, start = tmp_path_factory.mktemp("elsewhere"), ""
    if request.param == "from the wheel":
        request.getfixturevalue("wheel").extractall(folder / "site")
        start = f"import sys; sys.path.insert(0, {str(folder / 'site')!r})\n"
    command = [sys.executable, "-I", "-c", start + textwrap.dedent(WATCH)]
    seen = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert seen.returncode == 0, seen.stderr
    facts = json.loads(seen.stdout)  # importing prints nothing
    assert seen.stderr == ""
    homes = [folder / "site/vecsweep", folder / "site/vecsweep/kernels"]
    if request.param == "as installed here":
        homes = [Path(vs.__file__).parent, Path(vs.kernels.__file__).parent]
    assert [Path(home).resolve() for home in facts["homes"]] == [home.resolve() for home in homes]
    return facts


def test_importing_leaves_the_process_as_it_was(imported):
    assert "vecsweep._engine.run" in imported["new"]
    assert imported["after"] == imported["before"]


@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "scipy", "pandas", "torch._inductor"])
def test_importing_leaves_out_what_only_some_need(package, imported):
    assert package not in imported["all"]


def test_kernels_cannot_be_imported_but_as_part_of_vecsweep(imported):
    """Whose `kernels` it is that can, if any, is their affair."""
    if imported["kernels"] is not None:
        assert not Path(imported["kernels"]).is_relative_to(ROOT)
        assert not Path(imported["kernels"]).is_relative_to(Path(imported["homes"][0]).parent)
