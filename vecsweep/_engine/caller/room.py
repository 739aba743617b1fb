"""Room: how much memory there is for a run, on a GPU or on the host."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

_RESERVE = 0.06  # of a GPU, for workspaces and for what lies between blocks
_CGROUPS = Path("/sys/fs/cgroup")
# By version, where a control group says what its processes may take, what they have, and how much of that is files
# that are read and would be dropped.
_GROUP_FILES = {
    "v2": ("", "memory.max", "memory.current", "inactive_file"),
    "v1": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_bytes(device: torch.device) -> int | None:
    """What there is for a run: on a CPU what the system, the container and the process are allowed; None if unknown."""
    if device.type == "cuda":
        return free_on_gpu(device)
    return min(_free_on_host(), default=None) if device.type == "cpu" and sys.platform.startswith("linux") else None


def free_on_gpu(device: torch.device) -> int:
    """What a GPU has left for a run: what is free on it, and what PyTorch holds and does not use, but for a reserve."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, free + unused - int(_RESERVE * total))


def _free_on_host() -> Iterator[int]:
    """What each of those leaves who may limit a process under Linux."""
    with suppress(OSError, ValueError, KeyError):
        known = _numbers(Path("/proc/meminfo"))
        yield 1024 * (known["MemAvailable"] + known["SwapFree"])
    with suppress(OSError, ValueError, KeyError):
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

        most, _ = getrlimit(RLIMIT_AS)
        if most != RLIM_INFINITY:
            yield max(0, most - 1024 * _numbers(Path("/proc/self/status"))["VmSize"])
    for folder, version in _groups():
        with suppress(OSError, ValueError, KeyError):  # "max" is no number
            _, limit, used, files = _GROUP_FILES[version]
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            yield max(0, most - taken + _numbers(folder / "memory.stat")[files])


def _groups() -> Iterator[tuple[Path, str]]:
    """The control groups of this process, and those that its container has for its own."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            version = "v2" if number == "0" else "v1" if "memory" in controllers.split(",") else None
            if version is not None:
                root = _CGROUPS / _GROUP_FILES[version][0]
                yield from {root / path.lstrip("/"): version, root: version}.items()


def _numbers(path: Path) -> dict[str, int]:
    """Read a file that has a name and a number in each line."""
    fields = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    return {own[0]: int(own[1]) for own in fields if len(own) > 1 and own[1].isdigit()}
