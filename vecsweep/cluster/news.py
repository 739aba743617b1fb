"""What the two sides of a cluster say to each other: what is to be trained, and news of it as it goes."""

from dataclasses import dataclass, field

from vecsweep._engine.keeping.record import Start
from vecsweep._engine.ways.workers import Answer
from vecsweep._types import FloatArray, Hyper
from vecsweep.cluster.keeping import Place
from vecsweep.evaluation import Evaluation, SoFar
from vecsweep.plan import Plan


@dataclass(frozen=True, slots=True)
class Greeting:
    """Who a worker is.

    Attributes:
        name: host and process.
        speed: steps of one model in a second; 1 if it was not asked for.
        error: why the task cannot be made there; None if it can.
    """

    name: str
    speed: float
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A shard that is to be trained; the fields are the arguments of `_engine.run.train`.

    Attributes:
        plan: of its members.
        keeps_states: whether their states are wanted.
        evaluation: of members; pruning, if there is any, asks the other side.
        states: of the members, packed, for a start from them; None for a start from the beginning.
        start: the rest of it.
        is_watched: whether losses and metrics are to be told as they come.
        kept: which members go on after each rung that is decided, by steps.
        place: where the shard is kept as it goes; None for nowhere.
    """

    plan: Plan
    keeps_states: bool
    evaluation: Evaluation | None
    states: bytes | None = None
    start: Start | None = None
    is_watched: bool = False
    kept: dict[int, list[int]] = field(default_factory=dict)
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """Steps were done; `loss` and `hyper` are None where nobody watches."""

    start: int
    num_steps: int
    num_alive: int
    loss: FloatArray | None
    hyper: Hyper | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Members were evaluated."""

    num_done: int
    values: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Left:
    """A member of the shard diverged at a step, or was stopped after so many."""

    member: int
    step: int
    has_diverged: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """The shard has come to a rung, and waits to be told who goes on."""

    so_far: SoFar


@dataclass(frozen=True, slots=True)
class Ended:
    """The shard has come to its end: the value of the answer is its record."""

    answer: Answer


News = Losses | Metrics | Left | Asked | Ended
