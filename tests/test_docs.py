"""The pages of docs/: each runs as one program, what they link to is there, and their commands are understood."""

import ast
import builtins
import doctest
import importlib
import inspect
import re
import shlex
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
WITH_OWN_TESTS = ("migration.md", "lora.md", "scale.md")
PROGRAMS = [name for name, text in PAGES.items() if "```python" in text and name not in WITH_OWN_TESTS]
LINKS = [(name, link) for name, text in PAGES.items() for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)]
BLOCKS = [block for text in PAGES.values() for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
COMMANDS = [line for block in BLOCKS for line in re.findall(r"^vecsweep .*$", block, re.MULTILINE)]
COMMANDS += [line for text in PAGES.values() for line in re.findall(r"^`(vecsweep [^`\n]*)`$", text, re.MULTILINE)]


def slug(heading):
    """A heading's anchor, as Markdown's table of contents makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("name", PROGRAMS)
def test_code_of_a_page_runs_from_its_first_block_to_its_last(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = "\n".join(re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL))
    with warnings.catch_warnings():
        if name in ("lightning.md", "hugging-face.md"):
            warnings.simplefilter("ignore")  # what these packages warn of when they are imported
        exec(compile(program, f"docs/{name}", "exec"), {"__name__": "docs"})


@pytest.mark.parametrize(("name", "link"), LINKS)
def test_link_leads_somewhere(name, link):
    file, _, anchor = link.partition("#")
    if link.startswith("gallery/"):  # made when the site is built, by the page's own code, which the test above runs
        assert f'.savefig("{link.removeprefix("gallery/")}")' in PAGES[name]
        return
    assert (ROOT / "docs" / (file or name)).exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", PAGES[file or name], re.MULTILINE)
        assert anchor in map(slug, headings)


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_command_is_understood(line):
    from vecsweep.cli.parser import make_parser

    assert make_parser().parse_args(shlex.split(line.split("#")[0])[1:]).module


def test_every_page_is_found_from_the_menu():
    menu = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(PAGES)


def test_every_public_name_is_in_the_reference():
    import vecsweep as vs

    named = {line.split(".")[-1] for line in re.findall(r"^::: (\S+)", PAGES["api.md"], re.MULTILINE)}
    assert set(vs.__all__) <= named


def find_reference():
    """What the reference describes, by name; of a module all that it exports, or that the page names."""
    found = {}
    for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", PAGES["api.md"], re.MULTILINE):
        chosen = re.search(r"members: \[(.*)\]", options)
        if chosen or name == "vecsweep.schedules":
            module = importlib.import_module(name)
            found |= {
                f"{name}.{own}": getattr(module, own) for own in (chosen[1].split(", ") if chosen else module.__all__)
            }
        else:
            home, _, own = name.rpartition(".")
            found[name] = getattr(importlib.import_module(home), own)
    return {name: value for name, value in found.items() if callable(value)}


def undefined_names(text):
    """What the examples of a docstring use, and neither import nor define."""
    program = ast.parse("".join(example.source for example in doctest.DocTestParser().get_examples(text)))
    used, own = set(), set(dir(builtins))
    for node in ast.walk(program):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else own).add(node.id)
        elif isinstance(node, ast.alias):
            own.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler):
            own.add(node.name)
    return used - own


ON_PAGES = {  # what needs other packages, and the page whose code runs it
    "integrations.lightning": "lightning.md",
    "integrations.transformers": "hugging-face.md",
    "integrations.peft": "lora.md",
    "observers.TensorBoard": "trackers.md",
    "observers.MLflow": "trackers.md",
    "observers.WandB": "trackers.md",
    "observers.Trackio": "trackers.md",
    "tasks.digits": "find-lr.md",
}


@pytest.mark.parametrize(("name", "described"), find_reference().items())
def test_what_is_in_the_reference_has_an_example_that_runs(name, described):
    page = next((page for start, page in ON_PAGES.items() if name.startswith(f"vecsweep.{start}")), None)
    if page is None:
        text = inspect.getdoc(described)
        assert "Example:\n    >>> " in text, "examples after >>> are run as doctests"
        assert not undefined_names(text), "whoever copies an example has it run"
    else:
        assert re.search(rf"\b{name.split('.')[-1]}\(", PAGES[page])


def test_pages_ask_nothing_of_the_network_when_they_are_looked_at():
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert not re.search(r"https?://", settings)
    assert not any(re.search(r"!\[[^\]]*\]\(https?:|<(?:script|img|link)\b", text) for text in PAGES.values())
