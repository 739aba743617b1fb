"""The harness: arms timed in turn on pytest-benchmark, rows kept for each subject, a table and a file of them.

A benchmark takes the fixture `compare`, `interleave` or `record`; its subject is the name of its file without `bench_`.
With `--benchmark-disable` every arm is run once, to see that it works: the fixture `tiny` is True then, for a benchmark
to take the least that all its arms can run, and nothing is written.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from unittest import mock

import pytest
import torch
from measure import Row, circumstances, judge, line, path_of, summary, table, write

from vecsweep._engine.caller.memory import keep_memory

Arms = dict[str, Callable[[], Any]]


class Compare(Protocol):
    """The fixture `compare`."""

    def __call__(  # noqa: D102
        self, arms: Arms, *, rounds: int, calls: int = 1, scales: Mapping[str, float] | None = None, **facts: Any
    ) -> Row: ...


class Interleave(Protocol):
    """The fixture `interleave`."""

    def __call__(  # noqa: D102
        self, arms: Arms, *, rounds: int, calls: int = 1, scales: Mapping[str, float] | None = None
    ) -> dict[str, list[float]]: ...


class Record(Protocol):
    """The fixture `record`."""

    def __call__(self, **row: Any) -> Row: ...  # noqa: D102


@dataclass
class _Session:
    """What a run of benchmarks has found.

    Attributes:
        around: the circumstances.
        rows: by subject.
    """

    around: dict[str, Any]
    rows: dict[str, list[Row]] = field(default_factory=dict)


_SESSION = pytest.StashKey[_Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmarks."""
    group = parser.getgroup("vecsweep")
    group.addoption("--threads", type=int, help="threads of PyTorch; its own number if not given")
    group.addoption(
        "--system-allocator",
        action="store_true",
        help="leave glibc's malloc thresholds as they are, in place of raising them as the command line does",
    )
    group.addoption("--full", action="store_true", help="also other numbers of members than the one aimed at")
    group.addoption("--levels", action="store_true", help="also the other engines and levels than the automatic choice")


def pytest_configure(config: pytest.Config) -> None:
    """Set the process up, for all arms alike; what earlier runs chose, perhaps under load, is not used."""
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    os.environ["VECSWEEP_CACHE"] = folder.name
    if config.option.threads:
        torch.set_num_threads(config.option.threads)
    keeps_memory = not config.option.system_allocator and keep_memory()
    config.stash[_SESSION] = _Session(circumstances(keeps_memory=keeps_memory))


def is_tiny(config: pytest.Config) -> bool:
    """Whether every arm is only run once, to see that it works."""
    return bool(config.option.benchmark_disable)


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> bool:
    """As `is_tiny`, for benchmarks."""
    return is_tiny(request.config)


@pytest.fixture(autouse=True)
def compiler(tiny: bool) -> Iterator[None]:
    """Compile where arms are timed; where they are only run, what is compiled runs as it is, which takes no time."""
    if not tiny:
        yield
        return
    import torch._inductor  # noqa: F401 - a patch must find it

    with (
        mock.patch("torch._inductor.compile", lambda graph, _: graph.forward),
        mock.patch("torch.compile", lambda function: function),
    ):
        yield


@pytest.fixture
def interleave(benchmark: Any, tiny: bool) -> Interleave:
    """Time every arm once a round, in turn, so that what else the machine does falls on all of them.

    pytest-benchmark times the first arm, ours, and the others in its set-up. A round before the first warms all of them
    up. With `calls`, arms that are too short for the clock are called so often each time; `scales` has, by arm, what
    the time of a call is multiplied with, where arms do not do the same amount of work in a call. What comes back is
    seconds, for each arm and round.
    """

    def run(
        arms: Arms, *, rounds: int, calls: int = 1, scales: Mapping[str, float] | None = None
    ) -> dict[str, list[float]]:
        calls, rounds = (1, 1) if tiny else (calls, rounds)
        factors = {name: (scales or {}).get(name, 1.0) / calls for name in arms}
        seconds: dict[str, list[float]] = {name: [] for name in arms}

        def timed(name: str) -> None:
            _synchronize()
            started = time.perf_counter()
            for _ in range(calls):
                arms[name]()
            _synchronize()
            seconds[name].append((time.perf_counter() - started) * factors[name])

        ours, *others = arms

        def time_others() -> None:
            for name in others:
                timed(name)

        benchmark.pedantic(timed, args=(ours,), setup=time_others, rounds=rounds, iterations=1, warmup_rounds=1)
        return {name: values[-rounds:] for name, values in seconds.items()}

    return run


@pytest.fixture
def compare(interleave: Interleave, record: Record, benchmark: Any) -> Compare:
    """Compare the first arm, ours, with the others, as `interleave` times them, and keep a row of it.

    The row has the facts given, the median milliseconds of each arm, and the ratios: the median over the rounds of how
    many times longer another arm took than ours, with the spread over the rounds. A fact `target` is held against the
    smallest ratio, or that of the arm which the fact `against` names.
    """

    def run(arms: Arms, *, rounds: int, calls: int = 1, scales: Mapping[str, float] | None = None, **facts: Any) -> Row:
        row = record(**facts, **summary(interleave(arms, rounds=rounds, calls=calls, scales=scales)))
        benchmark.extra_info.update(row)
        return row

    return run


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Keep a row: named after the benchmark unless it has a `name`, written to the subject's file at once."""
    session = request.config.stash[_SESSION]
    subject = request.module.__name__.removeprefix("bench_")
    plugins = request.config.pluginmanager
    reporter, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")

    def keep(**facts: Any) -> Row:
        row = {"name": request.node.name.removeprefix("bench_"), **facts}
        met = judge(row)
        row |= {"load": os.getloadavg()[0]} | ({} if met is None else {"met": met})
        if is_tiny(request.config):
            return row
        session.rows.setdefault(subject, []).append(row)
        write(subject, session.around, [row])
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\n{line(row)}")
        return row

    return keep


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print a table for each subject, with what its figures depend on."""
    session = config.stash[_SESSION]
    around = session.around
    for subject, rows in session.rows.items():
        terminalreporter.section(f"{subject}: {around['device']}, {around['num_threads']} threads")
        terminalreporter.write_line(table(rows))
        terminalreporter.write_line("")
        terminalreporter.write_line("x: how many times longer than the first arm, median over the rounds")
        terminalreporter.write_line(f"in {os.path.relpath(path_of(subject, around))}")
    if session.rows and around["load"] > 0.25 * around["num_cores"]:
        terminalreporter.write_line(f"The load was {around['load']:.1f} at the start: other programs were running.")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
