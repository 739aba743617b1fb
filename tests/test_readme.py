"""The README's code runs as it stands, and what it shows is there."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_code_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_first_code_block_is_short():
    first = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len(first.strip().splitlines()) <= 20


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_linked_file_exists(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("command", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_make_command_exists(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", re.findall(r"^vecsweep .*$", README, re.MULTILINE))
def test_command_line_is_understood(line):
    from vecsweep.cli.parser import make_parser

    assert make_parser().parse_args(shlex.split(line.split("#")[0])[1:]).module
