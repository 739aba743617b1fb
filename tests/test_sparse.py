"""Sparse tensors, in batches, in models and as gradients, and nested ones: as in a plain loop, or refused in words."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs

LRS = [0.02, 0.1]
NUM_STEPS = 20

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning"),
]


class Propagated(nn.Module):
    """Two layers over a graph of 12 nodes, whose adjacency the model keeps or the batch brings."""

    def __init__(self, adjacency=None):
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("adjacency", adjacency)

    def forward(self, inputs, adjacency=None):
        adjacency = self.adjacency if adjacency is None else adjacency
        return self.head(torch.sparse.mm(adjacency, torch.tanh(self.hidden(torch.sparse.mm(adjacency, inputs)))))


def adjacency(seed):
    generator = torch.Generator().manual_seed(seed)
    return ((torch.rand(12, 12, generator=generator) < 0.1 + 0.1 * seed) | torch.eye(12, dtype=torch.bool)).double()


def nodes(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 5, generator=generator), torch.randint(3, (12,), generator=generator)


def make_task(model, batches, step):
    return vs.Task(model, batches, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def losses_of_a_loop(model, batches, step, lr):
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for k in range(NUM_STEPS):
        loss = step(model, batches[k % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def assert_as_a_loop(runs, model, batches, step):
    for i, lr in enumerate(LRS):
        torch.testing.assert_close(
            torch.tensor(runs.train_loss[:, i]), losses_of_a_loop(model, batches, step, lr), atol=1e-9, rtol=1e-9
        )


def of_kept(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def of_brought(model, batch):
    inputs, targets, own = batch
    return F.cross_entropy(model(inputs, own), targets)


@pytest.mark.parametrize("to_sparse", [torch.Tensor.to_sparse_coo, torch.Tensor.to_sparse_csr])
def test_batches_that_bring_sparse_matrices_are_trained_in_one_pass(to_sparse):
    batches = [(*nodes(seed), to_sparse(adjacency(seed))) for seed in range(4)]
    torch.manual_seed(0)
    model = Propagated()
    runs = vs.sweep(make_task(model, batches, of_brought), lrs=LRS, num_steps=NUM_STEPS, engine="vectorized")
    assert_as_a_loop(runs, model, batches, of_brought)


@pytest.mark.parametrize("to_sparse", [torch.Tensor.to_sparse_coo, torch.Tensor.to_sparse_csr])
def test_sweep_of_which_all_diverge_on_sparse_matrices_comes_to_its_end(to_sparse):
    def squares(model, batch):
        return model(*batch).square().mean()

    batches = [(nodes(0)[0], to_sparse(adjacency(0)))]
    runs = vs.sweep(make_task(Propagated(), batches, squares), lrs=[1e300, 1e305], num_steps=5)
    assert (runs.diverged_at >= 0).all()


def of_samples_of_any_length(model, batch):
    padded = torch.nested.to_padded_tensor(batch, 0.0)
    return model(padded).square().mean() + model(batch).values().square().mean()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_batches_of_nested_tensors_are_trained_member_by_member_and_it_is_said(layout, tmp_path):
    torch.manual_seed(0)
    batches = [torch.nested.nested_tensor([torch.randn(n, 5), torch.randn(3, 5)], layout=layout) for n in (2, 4, 2, 1)]
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))
    task = make_task(model, batches, of_samples_of_any_length)
    with pytest.warns(vs.FallbackWarning, match=r"cannot batch them: a nested tensor in the batches; pad samples"):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, checkpoint=tmp_path / "kept")
    assert_as_a_loop(runs, model, batches, of_samples_of_any_length)
    lost = vs.sweep(task, lrs=[1e300, 1e305], num_steps=5, engine="sequential")
    assert (lost.diverged_at >= 0).all()


def test_packed_sequences_in_batches_are_named():
    batches = [nn.utils.rnn.pack_sequence([torch.randn(n, 5) for n in (4, 2, 1)]) for _ in range(3)]
    task = make_task(nn.LSTM(5, 3), batches, lambda model, batch: model(batch)[0].data.square().mean())
    with pytest.warns(vs.FallbackWarning, match=r"cannot batch them: a packed sequence in the batches; pad samples"):
        vs.sweep(task, lrs=LRS, num_steps=3)


def test_model_that_keeps_a_sparse_matrix_is_trained_member_by_member_and_it_is_said():
    batches = [nodes(0)]
    torch.manual_seed(0)
    model = Propagated(adjacency(1).to_sparse_coo())
    task = make_task(model, batches, of_kept)
    with pytest.warns(vs.FallbackWarning, match=r"cannot batch them: a sparse tensor, such as a sparse matrix or"):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS)
    assert_as_a_loop(runs, model, batches, of_kept)
    assert "equals a plain loop" in str(vs.check(task, lrs=LRS, num_steps=3))


def test_what_cannot_be_kept_of_sparse_tensors_is_told(tmp_path):
    kept = make_task(Propagated(adjacency(1).to_sparse_coo()), [nodes(0)], of_kept)
    compressed = make_task(Propagated(adjacency(1).to_sparse_csr()), [nodes(0)], of_kept)
    with pytest.raises(TypeError, match=r"can be copied; 'adjacency' is torch.sparse_csr, .*to_sparse_coo"):
        vs.sweep(compressed, lrs=LRS, num_steps=2)
    with pytest.raises(TypeError, match=r"A checkpoint keeps dense tensors; .* torch.sparse_coo, \[12, 12\]"):
        vs.sweep(kept, lrs=LRS, num_steps=2, engine="sequential", checkpoint=tmp_path / "kept")
    runs = vs.sweep(kept, lrs=LRS, num_steps=2, engine="sequential")
    with pytest.raises(TypeError, match=r"holds dense tensors; 'adjacency' is torch.sparse_coo"):
        runs.save_model(0, tmp_path / "model.safetensors")


def test_embedding_with_sparse_gradients_is_trained_as_by_a_loop_and_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Flatten(), nn.Linear(18, 3))
    batches = [(torch.randint(9, (5, 3)), torch.randint(3, (5,))) for _ in range(3)]
    task = make_task(model, batches, of_kept)
    with pytest.warns(vs.FallbackWarning, match=r"the gradient of `nn.Embedding\(..., sparse=True\)`"):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS)
    assert_as_a_loop(runs, model, batches, of_kept)


def messages_of(model, batch):
    """A sum over edges, written by hand into a matrix that PyTorch makes for all members."""
    inputs, targets, edges = batch
    hidden = model.hidden(inputs)
    summed = torch.eye(len(inputs), 8).index_add_(0, edges[1], hidden[edges[0]])
    return F.cross_entropy(model.head(torch.relu(summed)), targets)


def test_sum_over_edges_that_is_written_in_place_names_the_operator_that_is_batched():
    torch.manual_seed(0)
    model, edges = Propagated(), torch.randint(12, (2, 30))
    batches = [(*nodes(0), edges)]
    with pytest.warns(
        vs.FallbackWarning, match=r"`index_add_` would write .* they share; `index_add` makes one, at .*test_sparse"
    ):
        runs = vs.sweep(make_task(model, batches, messages_of), lrs=LRS, num_steps=NUM_STEPS)
    assert_as_a_loop(runs, model, batches, messages_of)
