"""A plan on many devices: members are divided into shards, and each is trained by the engine as it is, elsewhere.

`train` is what `_engine.run.train` is, and hands over to it where there is one device. Ray starts processes, finds
places for them, moves objects and tells who has died; it is imported when it is asked for.
"""

from collections.abc import Callable
from typing import Any

import torch

from vecsweep._engine import run
from vecsweep._engine.keeping.record import Observer, Record, Start
from vecsweep.checkpoint.keeper import FolderKeeper
from vecsweep.evaluation import Evaluation
from vecsweep.execution import Cluster, Execution
from vecsweep.plan import Plan
from vecsweep.task import Task


def train(
    task: Task,
    plan: Plan,
    execution: Execution,
    *,
    dtype: torch.dtype | None = None,
    keeps_states: bool = True,
    evaluation: Evaluation | None = None,
    start: Start | None = None,
    observer: Observer | None = None,
    keepers: Callable[[], FolderKeeper] | None = None,
) -> Record:
    """Train every member of a plan, where `execution` says; the arguments are those of `_engine.run.train`.

    Raises:
        TypeError: the task cannot be sent to other processes.
        ConnectionError: there is no cluster at the address.
        RuntimeError: no worker can be had, or all members were lost with theirs.
    """
    asked: dict[str, Any] = {
        "dtype": dtype,
        "keeps_states": keeps_states,
        "evaluation": evaluation,
        "start": start,
        "observer": observer,
    }
    if not isinstance(execution.cluster, Cluster):
        return run.train(task, plan, execution, keepers=keepers, **asked)
    from vecsweep.cluster.driver import Driver
    from vecsweep.cluster.job import Job
    from vecsweep.cluster.keeping import Keeping
    from vecsweep.cluster.sending import pack_task
    from vecsweep.cluster.session import check_ray, connected

    job = Job(task=task, plan=plan, execution=execution, **asked)
    driver = Driver(job, None if keepers is None else Keeping(keepers(), job))
    if not driver.is_done:
        check_ray()
        packed = pack_task(task)
        with connected(execution.cluster, len(plan.members)) as session:
            driver.train(session, packed)
    return driver.joined()
