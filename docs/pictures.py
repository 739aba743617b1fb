"""For the site alone: the code of the gallery runs when the site is built, and its pictures become part of it."""

import logging
import re
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_LOG = logging.getLogger("mkdocs.hooks.pictures")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Run the blocks of the gallery as one program; what it draws becomes part of the site."""
    page = Path(config["docs_dir"], "gallery.md")
    program = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    _LOG.info("Drawing the pictures of the gallery ...")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        exec(compile(program, str(page), "exec"), {"__name__": "gallery"})
        for path in sorted(Path().glob("*.png")):
            files.append(File.generated(config, f"gallery/{path.name}", content=path.read_bytes()))
    return files
