"""Tasks by name, as on the command line: the built-in ones, and functions in a user's file or module."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from vecsweep._words import did_you_mean
from vecsweep.task import Task
from vecsweep.tasks.builtin import TASKS


def load_task(name: str) -> Task:
    """Find a task by its name on the command line, and make it.

    The name is that of a built-in task, or says where a function is that returns a `Task`:
    `path/to/file.py:function` or `package.module:function`. As when Python runs a script, the folder of the
    file (for a module, the current folder) goes to the front of `sys.path`. It stays there, because workers
    of a DataLoader may import the file again, by its name.

    Args:
        name: of the task.

    Returns:
        The task that the name, or the function it leads to, gives.

    Raises:
        ValueError: there is no such task, file or function, or it does not return a `Task`; or the data of a built-in
            task have not been fetched.
        ImportError: the package that a built-in task has its data from is not installed.

    Example:
        >>> import vecsweep as vs
        >>> from vecsweep.tasks import load_task
        >>> isinstance(load_task("digits"), vs.Task)
        True
    """
    source, colon, function_name = name.rpartition(":")
    if not colon:
        return _builtin(name)()
    if not source or not function_name.isidentifier():
        raise ValueError(
            f"A task must be path/to/file.py:function or package.module:function; got {name!r}. Name a "
            "function after the colon."
        )
    is_module = not source.endswith(".py") and all(part.isidentifier() for part in source.split("."))
    module = _import_module(source) if is_module else _import_file(Path(source))
    function = _function(module, source, function_name)
    needed = [p.name for p in inspect.signature(function).parameters.values() if _is_needed(p)]
    if needed:
        raise ValueError(
            f"{name} must be a function without arguments; it needs {', '.join(needed)}. Give them defaults, or add a "
            "function that calls it."
        )
    task = function()
    if not isinstance(task, Task):
        raise ValueError(  # noqa: TRY004 - one kind of error for a name that leads to no task
            f"{name} must return a vecsweep.Task; it returned {type(task).__name__}. End it with "
            "`return vecsweep.Task(...)`."
        )
    return task


def _is_needed(parameter: inspect.Parameter) -> bool:
    """Whether a function cannot be called without an argument for this parameter."""
    is_many = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not is_many


def _builtin(name: str) -> Callable[[], Task]:
    if name in TASKS:
        return TASKS[name]
    remedy = " For a task of your own, pass path/to/file.py:function or package.module:function."
    if name.endswith(".py"):
        remedy = f" For a task of your own, add its function: {name}:function."
    remedy = did_you_mean(name, TASKS) or remedy
    raise ValueError(f"A task must be one of the built-in ones, {', '.join(TASKS)}; got {name!r}.{remedy}")


def _import_file(path: Path) -> ModuleType:
    """Run a user's file as a module that its siblings, and the workers of a DataLoader, can import too."""
    if not path.is_file():
        reason = "it is a folder" if path.is_dir() else f"there is no such file in {Path.cwd()}"
        raise ValueError(f"{path} must be a Python file; {reason}. Pass path/to/file.py:function.")
    path = path.resolve()
    _put_first(path.parent)
    loaded = sys.modules.get(path.stem)
    is_taken = loaded is not None and getattr(loaded, "__file__", None) != str(path)
    module_name = f"vecsweep_task_{path.stem}" if is_taken else path.stem
    if path.suffix != ".py":
        raise ValueError(f"{path} must be a Python file, with a name that ends in .py. Rename it.")
    loader = _AsItStands(module_name, str(path))
    spec = importlib.util.spec_from_loader(module_name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickle looks a class up under the name of its module
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, ImportError | SyntaxError):
            raise _import_error(str(path), error) from error
        raise
    return module


class _AsItStands(SourceFileLoader):
    """A loader that goes by no byte code of before, which Python tells from a file by its size and its second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _import_module(name: str) -> ModuleType:
    _put_first(Path.cwd())
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        raise _import_error(name, error) from error


def _import_error(source: str, error: ImportError | SyntaxError) -> ValueError:
    """Say in one line what could not be imported, why, and at which line."""
    if isinstance(error, SyntaxError):
        return ValueError(
            f"{source} could not be imported: {error.msg}, at line {error.lineno} of {error.filename}. Mend that line."
        )
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    where = f", at line {lines[-1].lineno} of {lines[-1].filename}" if lines else ""
    return ValueError(
        f"{source} could not be imported: {error}{where}. Look for a misspelt name; a package that is missing "
        f"must be installed for {sys.executable}."
    )


def _put_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _function(module: ModuleType, source: str, name: str) -> Callable[[], object]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    own = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    listed = f"Its functions are {', '.join(own)}." if own else "It has no public functions."
    if function is not None:
        raise ValueError(
            f"{source}:{name} must be a function that returns a Task; got {type(function).__name__}. {listed}"
        )
    listed += did_you_mean(name, own)
    raise ValueError(f"{source} must have the function {name!r}; it has none of that name. {listed}")
