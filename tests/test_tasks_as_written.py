"""Tasks as people write them, each against a plain loop over the caller's own loader: what it yields, and when."""

import collections
import copy
import dataclasses
import multiprocessing
import queue
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import vecsweep as vs

ENGINES = ["vectorized", "sequential"]
NUM_STEPS = 21  # more than a window, and three epochs with a ragged end
LRS = [0.05, 0.02]

torch.manual_seed(0)
INPUTS = torch.randn(52, 5, dtype=torch.float64)
TARGETS = INPUTS @ torch.randn(5, 1, dtype=torch.float64) + 0.1 * torch.randn(52, 1, dtype=torch.float64)
PARTS = [slice(k, k + 8) for k in range(0, 52, 8)]  # the last has 4 samples


class Pair(nn.Module):
    """Two layers and an activation, for inputs whose last axis has 5 features."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 6), nn.Linear(6, 1)

    def forward(self, inputs):
        return self.head(torch.tanh(self.hidden(inputs)))


def of_pair(model, batch):
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)


def refilled():
    inputs, targets = torch.empty(8, 5, dtype=torch.float64), torch.empty(8, 1, dtype=torch.float64)
    for part in PARTS:
        n = len(INPUTS[part])
        inputs[:n], targets[:n] = INPUTS[part], TARGETS[part]
        yield inputs[:n], targets[:n]


def ring_of(num):
    def batches():
        ring = [(torch.empty(8, 5, dtype=torch.float64), torch.empty(8, 1, dtype=torch.float64)) for _ in range(num)]
        for k, part in enumerate(PARTS[:-1]):
            inputs, targets = ring[k % num]
            yield inputs.copy_(INPUTS[part]), targets.copy_(TARGETS[part])

    return batches


def from_one_array():
    array = np.empty((8, 6))
    for part in PARTS[:-1]:
        array[:, :5], array[:, 5:] = INPUTS[part], TARGETS[part]
        yield torch.from_numpy(array[:, :5]), torch.from_numpy(array[:, 5:])


def changed_between_yields():
    kept = [(INPUTS[part].clone(), TARGETS[part].clone()) for part in PARTS]
    for inputs, targets in kept:
        yield inputs, targets
        inputs.zero_()
        targets.zero_()


def nested():
    batch = {
        "views": [torch.empty(8, 5, dtype=torch.float64)],
        "more": {"want": torch.empty(8, 1, dtype=torch.float64)},
    }
    for part in PARTS[:-1]:
        batch["views"][0].copy_(INPUTS[part])
        batch["more"]["want"].copy_(TARGETS[part])
        yield batch


def arrays():
    inputs, targets = np.empty((8, 5)), np.empty((8, 1))
    for part in PARTS[:-1]:
        inputs[:], targets[:] = INPUTS[part], TARGETS[part]
        yield {"inputs": inputs, "targets": targets}


class ShuffledInPlace:
    """Keeps one tensor, shuffles it at the start of each pass, and hands out a list of its parts."""

    def __init__(self):
        self.data = torch.cat([INPUTS, TARGETS], dim=1)
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        self.data.copy_(torch.cat([INPUTS, TARGETS], dim=1).roll(7 * self.epoch, 0))
        return iter([(part[:, :5], part[:, 5:]) for part in self.data.split(8)])


class Items:
    """A sequence by `__getitem__` alone, of one buffer."""

    def __init__(self):
        self.buffer = torch.empty(8, 6, dtype=torch.float64)

    def __getitem__(self, k):
        if k >= 6:
            raise IndexError(k)
        self.buffer.copy_(torch.cat([INPUTS, TARGETS], dim=1)[PARTS[k]])
        return self.buffer[:, :5], self.buffer[:, 5:]


class ReusingCollate:
    def __init__(self):
        self.inputs, self.targets = torch.empty(8, 5, dtype=torch.float64), torch.empty(8, 1, dtype=torch.float64)

    def __call__(self, samples):
        for k, (inputs, targets) in enumerate(samples):
            self.inputs[k], self.targets[k] = inputs, targets
        return self.inputs[: len(samples)], self.targets[: len(samples)]


class Streaming(IterableDataset):
    """Yields batches of one buffer, without a length."""

    def __iter__(self):
        yield from refilled()


@dataclasses.dataclass
class Example:
    inputs: torch.Tensor
    targets: torch.Tensor
    names: tuple = ("a", "b")


Named = collections.namedtuple("Named", ["inputs", "targets"])


class Encoding(collections.UserDict):
    """As transformers' BatchEncoding: a mapping that is no dict, and moves its own tensors in place."""

    def to(self, device):
        self.data = {name: value.to(device) for name, value in self.data.items()}
        return self


class Store:
    """As torch_geometric's: holds the tensors, and refers back to its graph."""

    def __init__(self, parent):
        self.parent, self.mapping = weakref.ref(parent), {}

    def __getstate__(self):
        return {"parent": self.parent(), "mapping": self.mapping}

    def __setstate__(self, state):
        self.parent, self.mapping = weakref.ref(state["parent"]), state["mapping"]


class Graph:
    """As torch_geometric's Data."""

    def __init__(self, **tensors):
        self.store = Store(self)
        self.store.mapping.update(tensors)

    def __getattr__(self, name):
        if name.startswith("__") or name == "store" or name not in self.store.mapping:
            raise AttributeError(name)
        return self.store.mapping[name]

    def __copy__(self):
        return Graph(**self.store.mapping)

    def to(self, device):
        self.store.mapping = {name: value.to(device) for name, value in self.store.mapping.items()}
        return self


def objects_of(kind, num=7):
    return [kind(inputs=INPUTS[part], targets=TARGETS[part]) for part in PARTS[:num]]


def refilled_object():
    example = Example(torch.empty(8, 5, dtype=torch.float64), torch.empty(8, 1, dtype=torch.float64))
    for part in PARTS[:-1]:
        example.inputs.copy_(INPUTS[part])
        example.targets.copy_(TARGETS[part])
        yield example


def of_attributes(model, batch):
    return nn.functional.mse_loss(model(batch.inputs), batch.targets)


def of_items(model, batch):
    return nn.functional.mse_loss(model(batch["inputs"]), batch["targets"])


def over_dataset():
    """A closure over the data, and a step that looks up its batch there."""
    data = {"inputs": INPUTS, "targets": TARGETS}

    def step(model, indices):
        return nn.functional.mse_loss(model(data["inputs"][indices]), data["targets"][indices])

    return [torch.arange(52)[part] for part in PARTS], step


CASES = {
    "one buffer that is refilled": (refilled, of_pair),
    "a ring of two buffers": (ring_of(2), of_pair),
    "a ring of three buffers": (ring_of(3), of_pair),
    "torch.from_numpy of one array": (from_one_array, of_pair),
    "a kept list that is changed between yields": (changed_between_yields, of_pair),
    "a nested container that is refilled": (nested, lambda m, b: of_pair(m, (b["views"][0], b["more"]["want"]))),
    "numpy arrays that are refilled": (
        arrays,
        lambda m, b: of_pair(m, (torch.from_numpy(b["inputs"]), torch.from_numpy(b["targets"]))),
    ),
    "a tensor that is shuffled in place at each pass": (ShuffledInPlace, of_pair),
    "a sequence of one buffer": (Items, of_pair),
    "a loader whose collate refills": (
        lambda: DataLoader(TensorDataset(INPUTS, TARGETS), 8, collate_fn=ReusingCollate()),
        of_pair,
    ),
    "a loader that does not collate": (lambda: DataLoader(Streaming(), batch_size=None), of_pair),
    "a loader": (lambda: DataLoader(TensorDataset(INPUTS, TARGETS), 8), of_pair),
    "a list": (lambda: [(INPUTS[part], TARGETS[part]) for part in PARTS], of_pair),
    "a function of a seed": (lambda seed: [(INPUTS[part] + seed, TARGETS[part]) for part in PARTS], of_pair),
    "batches of one sample": (lambda: [(INPUTS[k : k + 1], TARGETS[k : k + 1]) for k in range(9)], of_pair),
    "dataclasses": (lambda: objects_of(Example), of_attributes),
    "a dataclass that is refilled": (refilled_object, of_attributes),
    "named tuples": (lambda: objects_of(Named), of_attributes),
    "graphs": (lambda: objects_of(Graph), of_attributes),
    "encodings": (lambda: [Encoding(inputs=INPUTS[part], targets=TARGETS[part]) for part in PARTS], of_items),
    "dicts": (lambda: [{"inputs": INPUTS[part], "targets": TARGETS[part]} for part in PARTS], of_items),
    "dicts with names that differ": (
        lambda: [{"inputs": INPUTS[p], "targets": TARGETS[p], "file": [f"{p.start}.png"]} for p in PARTS],
        of_items,
    ),
    "time first": (
        lambda: [
            (INPUTS[:48].view(6, 8, 5)[:, k : k + 3], TARGETS[:48].view(6, 8, 1)[:, k : k + 3]) for k in (0, 3, 6)
        ],
        of_pair,
    ),
    "a closure over a data set": (lambda: over_dataset()[0], over_dataset()[1]),
}


def make_task(make, step, **kwargs):
    torch.manual_seed(3)
    model = Pair().double()
    is_source = isinstance(make, type)
    batches = make() if is_source or ("lambda" in make.__qualname__ and not _takes_seed(make)) else make
    return vs.Task(
        model, batches, training_step=step, optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), **kwargs
    )


def _takes_seed(make):
    return bool(getattr(make, "__code__", None) and make.__code__.co_argcount)


def passes(batches):
    """What an ordinary loop sees, pass after pass, each batch when it is its turn."""
    while True:
        if hasattr(batches, "__iter__") or hasattr(batches, "__getitem__"):
            yield from batches
        else:
            yield from batches(0) if _takes_seed(batches) else batches()


def plain_loop(task, lr, num_steps):
    model = copy.deepcopy(task.model)
    optimizer = task.optimizer(model.parameters())
    optimizer.param_groups[0]["lr"] = lr
    losses, source = [], passes(task.batches)
    for _ in range(num_steps):
        loss = task.training_step(model, next(source))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_a_task_trains_as_a_plain_loop_over_its_own_loader_does(name, engine):
    task = make_task(*CASES[name])
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine=engine, divergence_factor=None)
    assert engine in runs.engine
    for i, lr in enumerate(LRS):
        losses, model = plain_loop(make_task(*CASES[name]), lr, NUM_STEPS)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        for own, expected in zip(runs.model(i).parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_seeds_that_share_a_buffer_train_on_batches_of_their_own(engine):
    buffer = torch.empty(8, 5, dtype=torch.float64), torch.empty(8, 1, dtype=torch.float64)

    def batches(seed):
        for part in PARTS[:-1]:
            yield buffer[0].copy_(INPUTS[part] + seed), buffer[1].copy_(TARGETS[part])

    apart = [
        vs.sweep(make_task(batches, of_pair), lrs=LRS, num_steps=9, seeds=[seed], engine=engine) for seed in (0, 1)
    ]
    runs = vs.sweep(make_task(batches, of_pair), lrs=LRS, num_steps=9, seeds=2, engine=engine)
    for i, member in enumerate(runs.members):
        np.testing.assert_allclose(runs.train_loss[:, i], apart[member.seed].train_loss[:, i // 2], rtol=1e-9)


@pytest.mark.parametrize("at", [3, 7, 10])
def test_extending_over_refilled_buffers_is_going_on_without_a_stop(at):
    whole = vs.sweep(make_task(refilled, of_pair), lrs=LRS, num_steps=NUM_STEPS)
    parts = vs.sweep(make_task(refilled, of_pair), lrs=LRS, num_steps=at).extend(num_steps=NUM_STEPS - at)
    np.testing.assert_allclose(parts.train_loss, whole.train_loss, rtol=1e-12)


def test_what_a_list_or_a_loader_yields_is_not_copied():
    from vecsweep._engine.caller.rng import Streams
    from vecsweep._engine.data.batches import BatchStream

    def first_of(batches):
        task = make_task(lambda: batches, of_pair)
        return BatchStream(task, 0, Streams(torch.device("cpu")), torch.device("cpu")).peek()

    listed = [(INPUTS[part], TARGETS[part]) for part in PARTS]
    assert first_of(listed)[0] is listed[0][0]
    assert first_of(tuple(listed))[0] is listed[0][0]
    held = list(refilled())
    assert first_of(iter(held))[0] is not held[0][0]


@pytest.mark.parametrize("engine", ENGINES)
def test_objects_of_the_caller_stay_as_they_are(engine):
    batches = objects_of(Graph) + objects_of(Graph)
    before = [(graph.store, graph.store.mapping) for graph in batches]
    vs.sweep(make_task(lambda: batches, of_attributes), lrs=LRS, num_steps=4, engine=engine)
    assert all(
        graph.store is store and store.mapping is mapping
        for graph, (store, mapping) in zip(batches, before, strict=True)
    )


@pytest.mark.parametrize("name", ["dataclasses", "graphs", "encodings", "dicts with names that differ"])
def test_a_batch_that_is_an_object_is_probed_once_for_its_kind(name, monkeypatch):
    from vecsweep._engine.ways import vectorized

    probed = []

    def count(learner, batch, seed, streams):
        probed.append(1)
        return probe(learner, batch, seed, streams)

    probe = vectorized.probe
    monkeypatch.setattr(vectorized, "probe", count)
    runs = vs.sweep(make_task(*CASES[name]), lrs=LRS, num_steps=60, engine="vectorized", chunk_size=2, compile=False)
    assert len(probed) <= 6  # and once for the first batch
    assert "traced" in runs.engine


def test_names_that_differ_in_every_batch_are_probed_a_few_times_alone(monkeypatch):
    from vecsweep._engine.ways import vectorized

    probed = []

    def count(*args):
        probed.append(1)
        return probe(*args)

    def batches():
        for k in range(200):
            yield {"inputs": INPUTS[PARTS[k % 6]], "targets": TARGETS[PARTS[k % 6]], "file": f"{k}.png"}

    probe = vectorized.probe
    monkeypatch.setattr(vectorized, "probe", count)
    task = make_task(batches, of_items)
    runs = vs.sweep(task, lrs=LRS, num_steps=60, engine="vectorized", chunk_size=2, compile=False)
    assert len(probed) == 15  # and once for the first batch
    np.testing.assert_allclose(runs.train_loss[:, 0], plain_loop(task, LRS[0], 60)[0], rtol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore")  # of the import
def test_graphs_of_torch_geometric_train_as_in_a_plain_loop(engine):
    data = pytest.importorskip("torch_geometric.data")
    graphs = [data.Data(x=INPUTS[k : k + 4], y=TARGETS[k : k + 4], name="g") for k in range(0, 24, 4)]
    batches = [data.Batch.from_data_list(graphs[k : k + 2]) for k in range(0, 6, 2)]
    task = make_task(lambda: batches, lambda m, b: nn.functional.mse_loss(m(b.x), b.y))
    runs = vs.sweep(task, lrs=LRS, num_steps=9, engine=engine, compile=False)
    np.testing.assert_allclose(runs.train_loss[:, 1], plain_loop(task, LRS[1], 9)[0], rtol=1e-9)
    assert engine in runs.engine


# Validation.

CLASSES = torch.arange(60).remainder(4)
MASKED = torch.where(torch.arange(60).remainder(3) == 0, -100, CLASSES)
SEQUENCES = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class PartlyFrozen(nn.Module):
    """Keeps its batch norm in eval mode, as detectors do, however often it is put into training mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))

    def train(self, mode=True):
        super().train(mode)
        self.layers[1].eval()
        return self

    def forward(self, inputs):
        return self.layers(inputs)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_model_leaves_in_eval_mode_when_it_is_to_train_stays_there(engine):
    torch.manual_seed(0)
    model = PartlyFrozen().double()
    batches = [(INPUTS[part], TARGETS[part]) for part in PARTS]
    task = vs.Task(model, batches, training_step=of_pair, optimizer=lambda own: torch.optim.SGD(own, lr=0.1))
    task.model.layers[2].eval()  # by the caller, and so left out of the loop's `train()` below
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine=engine)
    expected = copy.deepcopy(task)
    expected.model.layers[2].p = 0.0
    expected.model.train()
    for i, lr in enumerate(LRS):
        np.testing.assert_allclose(runs.train_loss[:, i], plain_loop(expected, lr, NUM_STEPS)[0], rtol=1e-9)
    assert model.layers[1].training, "the caller's own"


def classifier():
    torch.manual_seed(3)
    return nn.Linear(5, 4).double()


class Swapped(nn.Module):
    """Cross entropy on outputs whose last axis is the classes'."""

    def __init__(self, **kwargs):
        super().__init__()
        self.loss = nn.CrossEntropyLoss(**kwargs)
        self.ignore_index, self.weight = self.loss.ignore_index, self.loss.weight

    def forward(self, outputs, targets):
        return self.loss(outputs.flatten(0, -2), targets.flatten())


def ragged(targets, *axes):
    """Two batches of different size, `[*axes]` each, whose elements together are those of `targets`."""
    return [
        (SEQUENCES[:36].reshape(*axes[0], 5), targets[:36].reshape(axes[0])),
        (SEQUENCES[36:].reshape(*axes[1], 5), targets[36:].reshape(axes[1])),
    ]


WEIGHTS = torch.tensor([1.0, 5.0, 2.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("targets", "axes", "options"),
    [
        (CLASSES, ((36,), (24,)), {}),
        (CLASSES, ((6, 6), (6, 4)), {}),  # time first: the same number of steps, fewer sequences
        (CLASSES, ((9, 4), (6, 4)), {}),
        (MASKED, ((6, 6), (6, 4)), {}),
        (CLASSES, ((6, 6), (6, 4)), {"ignore_index": 1}),
        (CLASSES, ((6, 6), (6, 4)), {"weight": WEIGHTS, "ignore_index": 2}),
    ],
)
def test_validation_is_the_mean_over_all_targets(targets, axes, options, engine):
    if (targets < 0).any():
        targets = torch.cat([torch.full((12,), -100), targets[12:]])  # so that the batches differ in what counts
    model, loss_fn = classifier(), Swapped(**options)
    batches = ragged(targets, *axes)
    task = vs.Task(model, batches, loss_fn, optimizer=lambda p: torch.optim.SGD(p, 0.1), val_batches=batches)
    runs = vs.sweep(task, lrs=LRS, num_steps=3, engine=engine)
    for i in range(2):
        expected = loss_fn(runs.model(i)(SEQUENCES), targets).item()
        np.testing.assert_allclose(runs.metrics["val_loss"][-1, i], expected, rtol=1e-9)


def mean_over_all(task_step, batches, whole, **kwargs):
    """The validation loss of a sweep, and that of all in one batch."""
    model = classifier()
    task = vs.Task(
        model,
        batches,
        training_step=task_step,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        val_batches=batches,
        **kwargs,
    )
    runs = vs.sweep(task, lrs=[0.1], num_steps=2)
    return runs.metrics["val_loss"][-1, 0], task_step(runs.model(0), whole).item()


def test_dicts_that_begin_with_something_else_are_weighed_by_their_targets():
    def step(model, batch):
        return nn.functional.cross_entropy(model(batch["x"] + batch["at"].sum()), batch["y"])

    def of(part):
        return {"at": torch.zeros(1, 7, dtype=torch.float64), "x": SEQUENCES[part], "y": CLASSES[part]}

    measured, expected = mean_over_all(step, [of(slice(50)), of(slice(50, 60))], of(slice(60)))
    assert measured == pytest.approx(expected, rel=1e-9)


def test_labels_that_are_left_out_do_not_count():
    def step(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])

    def of(part):
        return {"x": SEQUENCES[part], "labels": torch.cat([torch.full((20,), -100), CLASSES[20:]])[part]}

    measured, expected = mean_over_all(step, [of(slice(30)), of(slice(30, 60))], of(slice(60)))
    assert measured == pytest.approx(expected, rel=1e-9)


def test_labels_of_a_causal_model_count_without_the_first_of_each_row():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).double()
    tokens = [torch.randint(11, (4, 3)), torch.randint(11, (2, 9))]
    batches = [{"input_ids": own, "labels": own} for own in tokens]
    task = vs.Task(
        model,
        batches,
        training_step=lambda m, b: m(**b).loss,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        val_batches=batches,
    )
    runs = vs.sweep(task, lrs=[0.1], num_steps=2, engine="sequential")
    trained = runs.model(0).eval()
    with torch.no_grad():
        per_token = [
            nn.functional.cross_entropy(
                trained(own).logits[:, :-1].flatten(0, 1), own[:, 1:].flatten(), reduction="none"
            )
            for own in tokens
        ]
    np.testing.assert_allclose(runs.metrics["val_loss"][-1, 0], float(torch.cat(per_token).mean()), rtol=1e-6)


def test_a_task_says_itself_how_much_a_batch_counts():
    def step(model, batch):
        return (
            nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none") * batch["m"]
        ).sum() / batch["m"].sum()

    def of(part):
        return {"x": SEQUENCES[part], "y": CLASSES[part], "m": (torch.arange(60) % 7 < 3).double()[part]}

    measured, expected = mean_over_all(
        step, [of(slice(50)), of(slice(50, 60))], of(slice(60)), batch_weight=lambda batch: batch["m"].sum()
    )
    assert measured == pytest.approx(expected, rel=1e-9)


def test_a_weight_that_is_no_function_or_gives_no_number_is_refused():
    def task(weight):
        return make_task(lambda: [(INPUTS, TARGETS)], of_pair, val_batches=[(INPUTS, TARGETS)], batch_weight=weight)

    with pytest.raises(TypeError, match="`batch_weight` must be a function from a batch to a number"):
        task(3)
    with pytest.raises(ValueError, match="must return one number for a batch; got shape"):
        vs.sweep(task(lambda batch: batch[0]), lrs=[0.1], num_steps=1)
    with pytest.raises(TypeError, match="`batch_weight` must return a number; got str"):
        vs.sweep(task(lambda batch: "8"), lrs=[0.1], num_steps=1)


# Batches without an end.


def endless():
    k = 0
    while True:
        yield INPUTS[PARTS[k % 6]], TARGETS[PARTS[k % 6]]
        k += 1


class Endless(IterableDataset):
    def __iter__(self):
        return endless()


class Watched:
    """Notes how far it was read in each pass."""

    def __init__(self):
        self.num_read = []

    def __iter__(self):
        self.num_read.append(0)
        for batch in endless():
            self.num_read[-1] += 1
            yield batch


def test_endless_batches_are_not_read_past_what_the_run_takes():
    watched = Watched()
    task = make_task(lambda: watched, of_pair, val_batches=[(INPUTS, TARGETS)])
    runs = vs.sweep(task, lrs=LRS, num_steps=5, accumulation_steps=2, engine="sequential")
    assert runs.evaluated_at.tolist() == [5]
    assert max(watched.num_read) <= 10


@pytest.mark.parametrize("make", [lambda: endless, lambda: DataLoader(Endless(), batch_size=None)])
def test_what_needs_the_end_of_endless_batches_says_so(make):
    def task(**kwargs):
        return make_task(make, of_pair, **kwargs)

    by_epoch = vs.schedules.from_torch(lambda o: torch.optim.lr_scheduler.StepLR(o, 1), interval="epoch")
    with pytest.raises(ValueError, match=r"A schedule by epochs needs batches that come to an end.*interval=.step"):
        vs.sweep(task(), lrs=LRS, num_steps=5, schedules={"steps": by_epoch})
    metrics = {"size": lambda model, batch: len(batch[0])}
    with pytest.raises(ValueError, match="`train_metrics` needs batches that come to an end"):
        vs.sweep(task(metrics=metrics), lrs=LRS, num_steps=5, train_metrics=True, val_every=2)
    with pytest.raises(ValueError, match=r"`patience` needs batches that come to an end.*`val_every`"):
        vs.sweep(task(), lrs=LRS, num_steps=5, patience=2, monitor="mean_train_loss")


def test_endless_validation_batches_are_refused(monkeypatch):
    monkeypatch.setattr("vecsweep._engine.data.sources._MAX_VALIDATION_BATCHES", 50)
    with pytest.raises(ValueError, match="`val_batches` must come to an end; 50 were read"):
        vs.sweep(make_task(refilled, of_pair, val_batches=endless), lrs=LRS, num_steps=2)


# Worker processes.


class Noisy(Dataset):
    """Draws in its workers, and notes there what it has served."""

    def __init__(self):
        self.num_served = 0

    def __len__(self):
        return 24

    def __getitem__(self, k):
        self.num_served += 1
        return INPUTS[k] + torch.rand(5, dtype=torch.float64) + self.num_served, TARGETS[k]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("of_seed", [False, True], ids=["loader", "function of a seed"])
def test_seeds_take_turns_at_worker_processes_and_see_what_they_would_alone(monkeypatch, of_seed):
    seen = queue.SimpleQueue()  # where a sweep does not look
    others = {child.pid for child in multiprocessing.active_children()}

    def num_workers():
        return len({child.pid for child in multiprocessing.active_children()} - others)

    def step(model, batch):
        seen.put(num_workers())
        return of_pair(model, batch)

    monkeypatch.setattr("vecsweep._engine.data.sources._MAX_WORKERS", 4)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    loader = DataLoader(Noisy(), 4, shuffle=True, num_workers=2)
    task = make_task(lambda: loader, step, val_batches=[(INPUTS, TARGETS)])
    if of_seed:
        task = replace(task, batches=lambda seed: loader)
    how = {"lrs": LRS, "num_steps": 8, "engine": "sequential"}
    runs = vs.sweep(task, seeds=4, **how)
    assert max(seen.get() for _ in range(seen.qsize())) == 4
    assert num_workers() == 0
    assert [m.seed for m in runs.members] == [0, 1, 2, 3] * 2
    for seed in range(4):
        alone = vs.sweep(task, seeds=[seed], **how)
        np.testing.assert_array_equal(runs.train_loss[:, [seed, seed + 4]], alone.train_loss)
        np.testing.assert_array_equal(runs.metrics["val_loss"][:, [seed, seed + 4]], alone.metrics["val_loss"])
    longer = runs.extend(num_steps=3)
    np.testing.assert_array_equal(longer.train_loss, vs.sweep(task, seeds=4, **{**how, "num_steps": 11}).train_loss)


class OfSequences(nn.Module):
    """A GRU over sequences of their own lengths, and a layer."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, inputs, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])


class OfChosen(nn.Module):
    """A layer for those samples alone whose first feature is positive."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 1)

    def forward(self, inputs, lengths):
        (rows,) = torch.where(inputs[:, 0, 0] + 0 * self.head.bias > 0)
        return torch.zeros(len(inputs), 1, dtype=inputs.dtype).index_add(0, rows, self.head(inputs[rows, 0]))


@pytest.mark.parametrize(
    ("make_model", "told"),
    [
        (OfSequences, r"aten::gru.data, of packed sequences"),
        (OfChosen, r"aten::where, whose result is as large as val"),
    ],
)
def test_operators_that_cannot_be_batched_are_named_by_what_callers_know_them_by(make_model, told):
    torch.manual_seed(0)
    model = make_model().double()
    inputs, lengths = INPUTS[:40].view(8, 5, 5), torch.tensor([5, 1, 3, 2, 5, 4, 2, 3])
    batches = [(inputs, lengths, TARGETS[:8])]

    def step(model, batch):
        return nn.functional.mse_loss(model(batch[0], batch[1]), batch[2])

    task = vs.Task(model, batches, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(vs.FallbackWarning, match=told):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine="vectorized")
    for i, lr in enumerate(LRS):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=lr)
        for k in range(NUM_STEPS):
            loss = step(own, batches[0])
            assert loss.item() == pytest.approx(runs.train_loss[k, i], abs=1e-9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
