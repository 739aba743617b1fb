"""Imports go down only: the layers of design.md, read off the source; and the public face, which stays small."""

import ast
import dataclasses
import graphlib
import inspect
import sys
from pathlib import Path
from typing import NamedTuple, Unpack, get_type_hints

import pytest

import vecsweep as vs
from vecsweep.execution import ExecutionOptions

ROOT = Path(__file__).parents[1]

# The bands of CONTRIBUTING.md from the bottom up, and the levels of each. A module imports from the bands and levels
# below its own. Put a new one as low as it goes.
LAYERS = {
    "kernels": [
        """kernels kernels._compile kernels._compiled kernels.rules._mapped kernels.rules._mode kernels.rules._scan
        kernels.rules.checkpoint kernels.updates._update""",
        "kernels._trace kernels.rules.draw kernels.updates._fused_adam",
        "kernels.rules.sampling",
        "kernels.rules.random",
        """kernels.rules.attention kernels.rules.check kernels.rules.convolution kernels.rules.embedding
        kernels.rules.foreach kernels.rules.function kernels.rules.gradient
        kernels.rules.linear kernels.rules.loss kernels.rules.new kernels.rules.normalization kernels.rules.pooling
        kernels.rules.recurrent kernels.updates.adadelta kernels.updates.adagrad kernels.updates.adam
        kernels.updates.adamax kernels.updates.nadam kernels.updates.radam kernels.updates.rmsprop
        kernels.updates.sgd""",
        "kernels.rules kernels.updates",
    ],
    "ground": [
        "_bars _cores _errors _folders _hyper _names _version _words several",
        "_interrupts _types",
        "_arrays",
    ],
    "inputs": [
        "execution task suggest.basin suggest.doubts suggest.horizon tasks.fetching",
        "suggest.curves suggest.rules tasks.data",
        """samples stumbles suggest.cyclical suggest.suggestion tasks.averaged tasks.batches tasks.models
        tasks.recut""",
        "suggest tasks.builtin",
        "tasks.finding",
        "tasks",
    ],
    "plans": [
        "evaluation schedules.lengths schedules.stand_in",
        "schedules.torch_schedulers",
        "schedules.schedule",
        "schedules.annealing schedules.cycles schedules.decay",
        "schedules.policies",
        "schedules.names",
        "schedules",
        "plan",
    ],
    "results": [
        "results._checks results._files results._html results.going_on results.prediction",
        "results.ranking",
        "results.member results.records results.trial",
        "results.curves",
        "results.frames results.views",
        "results.sweep",
        "results._answer_file results.by_samples results.joining results.phases results.range_test",
        "results.answer",
        "results.reading",
        "results",
    ],
    "looking": [
        "plot._axes",
        "plot._looks",
        "plot.curves plot.final plot.heatmap plot.plan plot.race plot.range_test",
        "plot.sweep",
        "report.blocks report.looks report.steps report.thinning",
        "report.marks",
        "report.against_lr report.curves report.document report.members report.plans report.race report.settings",
        "report.pages",
        "plot report observers.observer",
        "observers.audience observers._tracker observers.live observers.tensorboard",
        "observers.mlflow observers.trackio observers.wandb",
        "observers",
    ],
    "engine": [
        "_engine _engine.caller _engine.data _engine.graphs _engine.keeping _engine.members _engine.ways",
        """_engine.caller.casting _engine.caller.lending _engine.caller.memory _engine.caller.modes
        _engine.caller.places _engine.caller.rng _engine.caller.rebinding _engine.caller.room""",
        "_engine.caller.copying _engine.caller.wholes",
        "_engine.caller.reach",
        "_engine.caller.watch",
        "_engine.data.loaders _engine.data.packing _engine.data.waypoints",
        "_engine.data.layouts",
        "_engine.data.fingerprint _engine.data.own_state _engine.data.sources _engine.data.weights",
        "_engine.data.batches",
        """_engine.graphs.bindings _engine.graphs.capture _engine.graphs.closeness _engine.graphs.graph
        _engine.graphs.levels""",
        "_engine.graphs.formulas _engine.graphs.joining _engine.graphs.slots _engine.graphs.staging",
        "_engine.graphs.lowering",
        "_engine.members.divergence _engine.members.objective _engine.members.sameness",
        "_engine.members.templates _engine.members.work",
        "_engine.members.ensemble",
        "_engine.members.stock",
        "_engine.members.learner",
        "_engine.members.reads _engine.members.single_pass",
        "_engine.members.optimizer _engine.members.probe _engine.members.untrained",
        "_engine.members.footprint _engine.members.measure _engine.members.step",
        "_engine.ways.choices _engine.ways.contract _engine.ways.explaining _engine.ways.messages _engine.ways.program",
        "_engine.ways.chunk _engine.ways.remembered _engine.ways.sequential",
        "_engine.ways.vectorized",
        "_engine.ways.workers",
        "_engine.ways.parallel",
        "_engine.ways.trials",
        "_engine.keeping.record _engine.keeping.unloading",
        "_engine.keeping.snapshot",
        "_engine.keeping.soundness",
        "_engine.budget _engine.failures _engine.passes _engine.plain _engine.windows",
        "_engine.engines _engine.evaluate",
        "_engine.groups _engine.taking_up",
        "_engine.tally",
        "_engine.loop",
        "_engine.run",
    ],
    "kept": [
        "checkpoint checkpoint.elsewhere checkpoint.signals checkpoint.values",
        "checkpoint.disk",
        "checkpoint.snapshots",
        "checkpoint.keeper checkpoint.stored",
    ],
    "cluster": [
        "cluster.job cluster.sending cluster.shares",
        "cluster.joining cluster.rungs",
        "cluster.keeping",
        "cluster.news",
        "cluster.ordering cluster.retelling cluster.worker",
        "cluster.session",
        "cluster.driver",
        "cluster",
    ],
    "going on": [
        "_arguments folds origin pruning",
        "checkpoint.journal race",
        "checkpoint.arguments request",
        "checkpoint.trained",
        "training uncertainty",
        "search",
    ],
    "verbs": ["batch_sizes", "answer checking range_testing sweeps", "resuming"],
    "faces": [
        """finder.checks finder.drawing finder.loaders finder.ramps finder.snapshot integrations integrations._stand_in
        integrations._sklearn integrations._trainer_loss integrations.fastai""",
        """finder.history finder.seeds finder.steps integrations._lightning integrations._trainer_batches
        integrations.ignite""",
        "finder.lr_finder integrations._trainer integrations.lightning integrations.sklearn",
        "integrations.transformers",
        "integrations.peft",
        "finder",
        "vecsweep",
        "cli.arguments cli.demos cli.plain_loop cli.waiting",
        "cli.busy cli.progress cli.saving cli.saying cli.timing",
        "cli.reports",
        """cli.parser.bench cli.parser.check cli.parser.data cli.parser.demo cli.parser.find_lr cli.parser.plot
        cli.parser.range_test cli.parser.report cli.parser.resume cli.parser.steer cli.parser.sweep""",
        "cli.parser",
        """cli.bench cli.check cli.data cli.find_lr cli.range_test cli.report cli.resume cli.steer
        cli.sweep""",
        "cli.plot cli.demos.stage",
        "cli.demos.cyclical cli.demos.digits cli.demos.finder cli.demos.policies cli.demos.regression",
        "cli.demo",
        "cli",
        "__main__",
    ],
}
LEVELS = [level.split() for band in LAYERS.values() for level in band]

UPWARD = {
    (
        "results.range_test",
        "plot",
    ): "`found.plot()` is a method, which imports when it is called: not all have matplotlib",
    ("results.sweep", "plot"): "`runs.plot()` likewise",
    ("results.answer", "plot"): "`answer.plot()` likewise",
    ("results.sweep", "report"): "`runs.to_html()` likewise",
    ("results.range_test", "report"): "`found.to_html()` likewise",
    ("results.answer", "report"): "`answer.to_html()` likewise",
    ("results.sweep", "observers.tensorboard"): "`runs.to_tensorboard()` likewise",
    ("schedules.schedule", "plot"): "`schedule.plot()` likewise",
    ("schedules.torch_schedulers", "plot"): "likewise",
}

# Some import less than what lies below them.
ALL_THAT_IS_IMPORTED = {
    "kernels": {"kernels"},
    "kernels.rules": {"kernels.rules", "kernels._trace"},
    "kernels.updates": {"kernels.updates"},
    "execution": {"_words", "_errors", "_types"},
    "plan": {"_arrays", "_words", "_errors", "_hyper", "_types", "schedules"},
    "schedules": {"_errors", "_words", "_hyper", "_types", "plot", "schedules"},
    "suggest": {"_words", "_types", "suggest"},
    "task": {"_errors", "_types", "several"},
    "results.ranking": {"_types", "_words", "execution", "results._html"},
    "results": {
        "_arrays",
        "_words",
        "_errors",
        "_types",
        "execution",
        "results",
        "schedules",
        "suggest",
        "plot",
        "report",
        "observers.tensorboard",
    },
    "plot": {
        "_words",
        "_errors",
        "_types",
        "execution",
        "suggest",
        "results.curves",
        "results.member",
        "results.ranking",
        "results.trial",
        "results.views",
        "plot",
    },
    "report": {
        "_errors",
        "_types",
        "_version",
        "_words",
        "suggest",
        "results._files",
        "results.curves",
        "results.member",
        "results.ranking",
        "results.trial",
        "results.views",
        "report",
    },
    "tasks": {"_words", "_folders", "_types", "task", "tasks"},
    "observers": {
        "_errors",
        "_types",
        "execution",
        "observers",
        "plot",
        "results._html",
        "results.curves",
        "results.member",
    },
}

NEVER_REACHED = {  # by any chain of imports that run when the module is imported
    "_engine": {"sweeps", "results", "plot", "tasks", "cli"},
    "_engine.ways.sequential": {"_engine.ways.vectorized"},
    "_engine.ways.vectorized": {"_engine.ways.sequential"},
    "sweeps": {"plot", "tasks", "integrations", "cli"},
    "range_testing": {"plot", "tasks", "integrations", "cli"},
    "answer": {"plot", "tasks", "integrations", "cli"},
    "checking": {"plot", "tasks", "integrations", "cli"},
    "finder": {"plot", "tasks", "integrations", "cli"},
    "vecsweep": {"_engine", "task"},  # whose public names are imported when they are asked for
}

OTHER_PACKAGES = {  # besides Python's own; and who imports them
    "torch": {"vecsweep", "kernels"},
    "numpy": {"vecsweep"},
    "matplotlib": {"plot", "cli", "finder.drawing"},
    "pandas": {"results.frames"},
    "plotly": {"report.document"},
    "pyarrow": {"results.frames"},
    "sklearn": {"tasks.data", "integrations._sklearn", "integrations.sklearn"},
    "PIL": {"tasks.data"},  # comes with matplotlib
    "scipy": {"results.ranking"},
    "safetensors": {"checkpoint.disk", "checkpoint.stored", "results._files", "results.sweep"},
    "platformdirs": {"_folders"},
    "filelock": {"_engine.ways.remembered", "checkpoint.journal"},
    "tensorboard": {"observers.tensorboard"},
    "mlflow": {"observers.mlflow"},
    "trackio": {"observers.trackio"},
    "wandb": {"observers.wandb"},
    "shtab": {"cli.parser"},
    "IPython": {"observers.live"},  # which is there wherever it imports it
    "upath": {"checkpoint.elsewhere"},
    "ray": {"cluster.sending", "cluster.session"},
    "tqdm": {"_bars"},
}


class Import(NamedTuple):
    """One arrow of the graph; `is_at_once` where importing the importer runs it."""

    imported: str
    is_at_once: bool


def find_modules():
    """The source files by module, as users import them."""
    files = {}
    for path in [*(ROOT / "vecsweep").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "vecsweep" else ("vecsweep", *parts)
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = find_modules()


def read_imports(source, module, *, is_package=False):
    """Every import of a module, inside functions too, but for those that only a type checker sees."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []

    def visit(node, is_at_once):
        if isinstance(node, ast.Import):
            found.extend(Import(name.name, is_at_once) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for name in node.names:
                inner = f"{origin}.{name.name}"
                found.append(Import(inner if inner in MODULES else origin, is_at_once))
        elif isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING":
            for child in node.orelse:
                visit(child, is_at_once)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                visit(child, is_at_once and not is_function)

    visit(ast.parse(source), is_at_once=True)
    return found


def short(module):
    """Its name in the tables: without "vecsweep.", but for the public face itself."""
    return module.removeprefix("vecsweep.")


def is_in(module, package):
    return f"{module}.".startswith(f"{package}.")


def is_ours(module):
    return is_in(module, "vecsweep")


TREES = {short(module): ast.parse(path.read_text()) for module, path in MODULES.items()}
IMPORTS = {
    short(module): read_imports(path.read_text(), module, is_package=path.name == "__init__.py")
    for module, path in MODULES.items()
}
RANKS = {module: rank for rank, level in enumerate(LEVELS) for module in level}
ARROWS = sorted({(a, short(b)) for a, imports in IMPORTS.items() for b, _ in imports if is_ours(b)})
PLACED = [(a, b) for a, b in ARROWS if {a, b} <= RANKS.keys() and (a, b) not in UPWARD]
AT_ONCE = {a: {short(b) for b, is_at_once in imports if is_ours(b) and is_at_once} for a, imports in IMPORTS.items()}


def reach(module):
    """The modules that importing a module imports."""
    seen, pending = set(), [module]
    while pending:
        new = AT_ONCE[pending.pop()] - seen
        seen |= new
        pending += new
    return seen


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import torch.nn.functional as F", "torch.nn.functional"),
        ("from torch import nn", "torch"),
        ("import vecsweep as vs", "vecsweep"),
        ("from vecsweep import sweep", "vecsweep"),
        ("from vecsweep import kernels", "vecsweep.kernels"),
        ("from vecsweep.kernels.rules import Draw", "vecsweep.kernels.rules"),
        ("from . import learner", "vecsweep._engine.members.learner"),
        ("from .learner import Learner", "vecsweep._engine.members.learner"),
        ("from .. import loop", "vecsweep._engine.loop"),
        ("from ...task import Task", "vecsweep.task"),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", "numpy"),
        ("class A:\n    import numpy", "numpy"),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", "numpy"),
    ],
)
def test_import_is_found_however_it_is_written(source, imported):
    assert read_imports(source, "vecsweep._engine.members.step") == [Import(imported, is_at_once=True)]
    indented = "\n".join(f"        {line}" for line in source.splitlines())
    inside = f"class B:\n    def f():\n{indented}"
    assert read_imports(inside, "vecsweep._engine.members.step") == [Import(imported, is_at_once=False)]


def test_relative_import_of_a_package_starts_at_itself():
    found = read_imports("from .random import Draw", "vecsweep.kernels.rules", is_package=True)
    assert found == [Import("vecsweep.kernels.rules.random", is_at_once=True)]


@pytest.mark.parametrize("condition", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_import_for_the_type_checker_is_passed_over(condition):
    assert read_imports(f"if {condition}:\n    import vecsweep.plot", "vecsweep.plan") == []


def test_source_is_found():
    assert ("cluster", "_engine.run") in ARROWS
    assert ("_engine.ways.explaining", "kernels") in ARROWS
    assert ("kernels.updates.adam", "kernels.updates._update") in ARROWS
    assert "plot" not in AT_ONCE["results"]
    assert reach("sweeps") >= {"_engine.ways.sequential", "_engine.caller.rng", "kernels.rules.random", "_types"}


def test_every_module_has_a_place_in_the_table():
    placed = [module for level in LEVELS for module in level]
    modules = set(map(short, MODULES))
    assert modules - set(placed) == set(), "put it into LAYERS"
    assert set(placed) - modules == set(), "it is gone; take it out of LAYERS"
    assert len(placed) == len(set(placed))


@pytest.mark.parametrize(("importer", "imported"), PLACED)
def test_import_goes_to_a_lower_layer(importer, imported):
    assert RANKS[imported] < RANKS[importer], "move what is shared down, or say in UPWARD why not"


@pytest.mark.parametrize(("importer", "imported"), UPWARD)
def test_import_that_goes_up_is_there_and_waits_until_it_is_needed(importer, imported):
    assert (importer, imported) in ARROWS, "it is gone; take it off the list"
    assert imported not in AT_ONCE[importer]


@pytest.mark.parametrize("importer", ALL_THAT_IS_IMPORTED)
def test_leaf_imports_nothing_beside_it(importer):
    targets = {b for a, b in ARROWS if is_in(a, importer)}
    assert {b for b in targets if not any(is_in(b, allowed) for allowed in ALL_THAT_IS_IMPORTED[importer])} == set()


@pytest.mark.parametrize("importer", NEVER_REACHED)
def test_some_layers_never_meet(importer):
    modules = [module for module in AT_ONCE if is_in(module, importer)]
    assert modules
    assert {b for a in modules for b in reach(a)} & NEVER_REACHED[importer] == set()


def test_command_line_is_imported_by_the_command_alone():
    assert [a for a, b in ARROWS if is_in(b, "cli") and not is_in(a, "cli")] == ["__main__"]


def test_imports_run_in_no_circle_even_those_that_wait_until_they_are_needed():
    every = {a: {short(b) for b, _ in imports if is_ours(b)} - {a} for a, imports in IMPORTS.items()}
    order = list(graphlib.TopologicalSorter(every).static_order())  # CycleError if there is one
    assert order.index("_types") < order.index("sweeps") < order.index("finder")


@pytest.mark.parametrize("importer", IMPORTS)
def test_other_packages_are_imported_where_they_belong(importer):
    """Anything else is a new dependency, for which design.md wants a reason."""
    home = "kernels" if is_in(importer, "kernels") else "vecsweep"
    others = {b.split(".")[0] for b, _ in IMPORTS[importer] if not is_ours(b)} - sys.stdlib_module_names
    homes = {name: {place for place in OTHER_PACKAGES.get(name, ()) if is_in(importer, place)} for name in others}
    assert {name for name in others if not homes[name] and home not in OTHER_PACKAGES.get(name, ())} == set()


def test_command_line_alone_prints():
    def prints(node):
        is_print = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        return is_print or (isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"})

    printing = {module for module, tree in TREES.items() if any(map(prints, ast.walk(tree)))}
    others = {"_bars", "_engine.ways.workers"}  # which asks whether there is where to show, and which flushes
    assert printing == {"cli.saying", "cli.waiting"} | others


def test_public_names_are_at_most_twenty():
    assert len(vs.__all__) <= 20
    assert len(set(vs.__all__)) == len(vs.__all__)


def test_face_shows_its_public_names_and_modules_only():
    public = {name: getattr(vs, name) for name in dir(vs) if not name.startswith("_")}
    names = {name for name, value in public.items() if not inspect.ismodule(value)}
    assert names == {name for name in vs.__all__ if not inspect.ismodule(getattr(vs, name))}


@pytest.mark.parametrize("name", vs.__all__)
def test_public_name_says_what_it_is(name):
    public = getattr(vs, name)
    assert public.__doc__
    assert not public.__doc__.startswith(f"{name}("), "that is what dataclass writes where there is nothing"


@pytest.mark.parametrize("name", [name for name in vs.__all__ if inspect.isclass(getattr(vs, name))])
def test_public_methods_say_what_they_do(name):
    kinds = (type(lambda: None), property, classmethod, staticmethod)
    own = {key: value for key, value in vars(getattr(vs, name)).items() if isinstance(value, kinds)}
    assert [key for key, value in own.items() if not key.startswith("_") and not value.__doc__] == []


def test_options_of_a_call_are_the_fields_of_execution():
    hints = get_type_hints(vs.Execution)
    assert [field.name for field in dataclasses.fields(vs.Execution)] == list(hints)
    assert list(get_type_hints(ExecutionOptions).items()) == list(hints.items())
    assert ExecutionOptions.__required_keys__ == set()


def test_every_option_is_explained():
    explained = inspect.getdoc(vs.Execution)  # without the indentation that Python 3.13 leaves out
    assert [name for name in ExecutionOptions.__annotations__ if f"\n    {name}: " not in explained] == []


@pytest.mark.parametrize("verb", [vs.range_test, vs.sweep, vs.check])
def test_every_verb_takes_the_same_options(verb):
    *_, options = inspect.signature(verb).parameters.values()
    assert options.kind is inspect.Parameter.VAR_KEYWORD
    assert options.annotation == Unpack[ExecutionOptions]
