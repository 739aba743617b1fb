"""All that a GPU has to show, in calls of a few minutes: the tests on the device, then the benchmarks with their JSON.

    python bench/gpu.py                 # goes on where the last call stopped, for 7.5 minutes at most
    python bench/gpu.py --minutes 30
    python bench/gpu.py --only sweep    # the parts whose names have it, whether they are done or not
    python bench/gpu.py --rehearse      # on any machine: all parts as tiny as they go, tests only collected

A part is a process with a limit of its own. What became of it, and the figures that it found, are noted after it in
parts.json under build/gpu, for the code as it is: code that is changed starts anew. What parts print is kept beside it,
and benchmarks write bench/results as they always do. The first call has time for the first parts, whatever they do: are
steps right on the device, and the figures that matter most, of steps that are traced and captured. What a compiler
makes of them takes minutes to see, and is for later calls.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from measure import RESULTS, line

ROOT = Path(__file__).parent.parent
_CODE = ("kernels", "vecsweep", "tests", "bench")
_SHORTEST_S = 20  # that is worth beginning a part for


@dataclass(frozen=True)
class Part:
    """Something to run.

    Attributes:
        name: of it.
        arguments: of Python.
        limit_s: seconds from which on it hangs.
    """

    name: str
    arguments: tuple[str, ...]
    limit_s: float = 240.0

    @property
    def rehearsal(self) -> "Part":
        """The same where there is no GPU, to see that nothing is misspelt."""
        quick = ["--collect-only", "-q"] if "--gpu" in self.arguments else ["--benchmark-disable"]
        return replace(self, arguments=(*self.arguments, *quick))


def _tests(name: str, *arguments: str, limit_s: float = 240.0) -> Part:
    return Part(f"tests: {name}", ("-m", "pytest", "--gpu", "--maxfail=20", *arguments), limit_s)


def _bench(subject: str, *arguments: str, limit_s: float = 240.0) -> Part:
    name = " ".join([f"bench: {subject}", *arguments])
    return Part(name, ("-m", "pytest", f"bench/bench_{subject}.py", *arguments), limit_s)


def _traced(workloads: str, limit_s: float) -> Part:
    return _bench("sweep", "--levels", "-k", f"steps and traced and ({workloads})", limit_s=limit_s)


_SIDE_BY_SIDE = (
    "--numprocesses",
    "auto",
    "--maxprocesses",
    "12",
    "--dist",
    "worksteal",
)  # small models leave a GPU idle

# Their limits are no more than a first call has.
FIRST = (
    _tests("capture", "tests/test_capture.py", "tests/test_slots.py", limit_s=50),
    _tests("equivalence", "tests/test_equivalence.py", "tests/test_contract.py", *_SIDE_BY_SIDE, limit_s=90),
    _traced("digits or (mnist and not adamw)", limit_s=65),
    _traced("char-gpt", limit_s=35),
    _traced("(vgg and not augmented) or resnet18", limit_s=90),
    _bench("lora", "-k", "large and not large-8", limit_s=70),
    _bench("update", "-k", "sgd-momentum or (adam and not (adamw or nadam or radam or adamax))", limit_s=45),
)
# What fails first and tells most comes first.
PARTS = (
    *FIRST,
    _tests("layers", "tests/test_layers.py", *_SIDE_BY_SIDE),
    _tests("training", "tests/test_training.py"),
    _tests("rules", "tests/test_rules.py"),
    _tests("updates", "tests/test_updates.py"),
    _tests("refused numbers and draws", "tests/test_refused_numbers.py", "tests/test_evaluation_draws.py"),
    _bench("sweep", "-k", "digits or range"),
    _bench("sweep", "-k", "steps and (mnist or cnn or gpt or lstm or frozen)"),
    _bench("sweep", "-k", "steps and (vgg or resnet18)"),
    _bench("update", "-k", "not adamw"),
    _bench("update", "-k", "adamw", limit_s=420),  # torch.optim's is compiled for each member
    _bench("host"),
    _bench("convolution"),
    _bench("lora", limit_s=420),
    _bench("real", "-k", "8x100 and (bert or gpt2 or llama or vit or lora)"),
    _bench("real", "-k", "8x100 and resnet18"),
    _bench("memory"),
    _bench("start", "-k", "range"),
    _bench("sweep", "--full", "-k", "steps and digits", limit_s=420),
    _bench("sweep", "--full", "-k", "steps and mnist", limit_s=420),
    _bench("sweep", "--full", "-k", "steps and (vgg or resnet18) and not augmented", limit_s=420),
    _bench("peers", "-k", "jax"),
    _bench("rules"),
    _bench("start", "-k", "not range"),
    _bench("members"),
    _bench("comparison", limit_s=420),
    _bench("policies", limit_s=1800),
)


def digest(root: Path) -> str:
    """Name the code as it is."""
    content = hashlib.blake2b(digest_size=6)
    for path in sorted(path for folder in _CODE for path in (root / folder).rglob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()


def run(parts: Sequence[Part], folder: Path, seconds: float, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the parts that are not done yet, for so long; return what became of each, also in earlier calls.

    Args:
        parts: in their order.
        folder: where that is noted, and what they print.
        seconds: for all of them. A part that is cut short by it has its turn in the next call.
        say: what is told on the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / "parts.json"
    known = _rows()
    done: dict[str, Any] = json.loads(noted.read_text()) if noted.exists() else {}
    deadline = time.monotonic() + seconds
    for part in parts:
        left = deadline - time.monotonic()
        if part.name in done:
            continue
        if left < min(_SHORTEST_S, part.limit_s):
            break
        say(f"{part.name} ...")
        log = folder / f"{''.join(c if c.isalnum() else '-' for c in part.name)}.log"
        started = time.monotonic()
        with log.open("w") as stream:
            try:
                code = _run(part.arguments, stream, min(part.limit_s, left))
                result = {0: "passed", 5: "nothing to run"}.get(code, f"failed ({code})")  # 5: pytest found no test
            except subprocess.TimeoutExpired:
                if left < part.limit_s:  # one that keeps how far it came goes on there
                    say("  cut short; it has its turn in the next call")
                    break
                result = "took too long"
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        found = _rows()
        rows, known = [row for name, row in found.items() if known.get(name) != row], found
        done[part.name] = {
            "result": result,
            "seconds": round(time.monotonic() - started, 1),
            "last": "".join(last)[-200:],
            "log": log.name,
            "rows": rows,
        }
        noted.write_text(json.dumps(done, indent=1) + "\n")
        say(f"  {result} in {done[part.name]['seconds']:.0f} s: {done[part.name]['last']}")
        for row in rows:
            say(f"  {line(row)}")
    return {part.name: done.get(part.name) for part in parts}


def _rows() -> dict[tuple[str, str], Any]:
    """The rows that benchmarks have written, by file and name."""
    found = {}
    for path in RESULTS.glob("*threads-*.json"):
        rows = json.loads(path.read_text())["rows"]
        found |= {(path.name, row["name"]): row for row in rows if isinstance(row, dict)}
    return found


def _run(arguments: Sequence[str], stream: IO[str], limit_s: float) -> int:
    """Run Python; whatever it has started ends with it, lest that holds the GPU for the next."""
    is_posix = os.name == "posix"
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        process_group=0 if is_posix else None,
    ) as process:
        try:
            return process.wait(limit_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if is_posix else process.kill()


def main() -> int:
    """Run what is left; return 0 unless a part failed or there is no GPU."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7.5, help="for this call (default: 7.5)")
    parser.add_argument("--only", default="", help="parts whose names have this, whether they are done or not")
    parser.add_argument("--rehearse", action="store_true", help="all parts as tiny as they go, with or without a GPU")
    given = parser.parse_args()
    parts = [part for part in PARTS if given.only in part.name]
    if given.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            found = run([part.rehearsal for part in parts], Path(folder), 3600)
        return int(any(result is None or result["result"].startswith(("failed", "took")) for result in found.values()))
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU here, so there is nothing to run: `make test` has what can be proved without one.")
        return 1
    device = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name().lower())
    folder = ROOT / "build" / "gpu" / f"{device}-{digest(ROOT)}"
    if given.only and (folder / "parts.json").exists():
        kept = json.loads((folder / "parts.json").read_text())
        left = {name: found for name, found in kept.items() if name not in {part.name for part in parts}}
        (folder / "parts.json").write_text(json.dumps(left, indent=1) + "\n")
    found = run(parts, folder, 60 * given.minutes)
    waiting = [name for name, result in found.items() if result is None]
    failed = [name for name, result in found.items() if result and result["result"] not in ("passed", "nothing to run")]
    print(f"\n{len(found) - len(waiting)} of {len(found)} parts are done; logs are in {folder.relative_to(ROOT)}.")
    for name in failed:
        print(f"{name}: {found[name]['result']}; see {found[name]['log']}")
    if waiting:
        print(f"`make gpu` goes on with {waiting[0]}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
