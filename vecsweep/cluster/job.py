"""Job: what a run is asked for, in one piece, to be handed around on the driver's side."""

from dataclasses import dataclass

import torch

from vecsweep._engine.keeping.record import Observer, Start
from vecsweep.evaluation import Evaluation
from vecsweep.execution import Cluster, Execution
from vecsweep.plan import Plan
from vecsweep.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run; the fields are the arguments of `_engine.run.train`, of all members."""

    task: Task
    plan: Plan
    execution: Execution
    dtype: torch.dtype | None = None
    keeps_states: bool = True
    evaluation: Evaluation | None = None
    start: Start | None = None
    observer: Observer | None = None

    @property
    def cluster(self) -> Cluster:
        """Where it is carried out."""
        assert isinstance(self.execution.cluster, Cluster)
        return self.execution.cluster
