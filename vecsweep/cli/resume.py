"""`vecsweep resume`: go on with a command that was begun with --checkpoint."""

import argparse
import os
from pathlib import Path

from vecsweep.checkpoint.elsewhere import folder_of, is_elsewhere
from vecsweep.checkpoint.journal import read_call


def run(arguments: argparse.Namespace) -> list[str]:
    """Return the command, which is to be run again in its own working folder."""
    folder = folder_of(arguments.folder)
    folder = folder if is_elsewhere(folder) else folder.resolve()
    try:
        command = read_call(folder).command
    except FileNotFoundError as error:
        raise ValueError(f"{error}") from error
    if command is None:
        raise ValueError(f"{folder} was begun in Python. Go on there, with `vecsweep.resume({str(folder)!r}, task)`.")
    if Path(command.folder).is_dir():
        os.chdir(command.folder)
    words = list(command.words)
    for i, word in enumerate(words):
        if word == "--checkpoint":
            words[i + 1] = str(folder)
        elif word.startswith("--checkpoint="):
            words[i] = f"--checkpoint={folder}"
    return [word for word in words if word != "--restart"]
