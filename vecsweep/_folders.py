"""Where files are kept that belong to the user rather than to a project."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The folder that VECSWEEP_CACHE names, else the user's cache folder for vecsweep."""
    return Path(os.environ.get("VECSWEEP_CACHE") or _user_cache())


def data_root() -> Path:
    """The folder that VECSWEEP_DATA names, else `data` in the user's cache folder for vecsweep."""
    return Path(os.environ.get("VECSWEEP_DATA") or _user_cache() / "data")


def _user_cache() -> Path:
    return Path(platformdirs.user_cache_dir("vecsweep", appauthor=False))
