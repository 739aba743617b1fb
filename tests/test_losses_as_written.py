"""Losses and training steps of the sort that people write, beside a plain loop: the same numbers in both engines."""

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import distributions, nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

import vecsweep as vs

NUM_CLASSES = 4
NUM_SAMPLES = 12
NUM_STEPS = 36  # past the check at call 30


def of_their_log(log_p, labels):
    return log_p.gather(1, labels[:, None])[:, 0]


def focal(outputs, labels):
    log_p = of_their_log(outputs.log_softmax(1), labels)
    return (-((1 - log_p.exp()) ** 2) * log_p).mean()


def hardest(outputs, labels):
    return F.cross_entropy(outputs, labels, reduction="none").topk(NUM_SAMPLES // 3).values.mean()


def above_the_mean(outputs, labels):
    losses = F.cross_entropy(outputs, labels, reduction="none")
    is_hard = losses > losses.mean().detach()
    return (losses * is_hard).sum() / is_hard.sum()


def angular_margin(outputs, labels):
    cosine = F.normalize(outputs, dim=1)
    wider = torch.cos(torch.acos(cosine.clamp(-0.99, 0.99)) + 0.3)
    return F.cross_entropy(8 * torch.where(F.one_hot(labels, NUM_CLASSES).bool(), wider, cosine), labels)


def supervised_contrastive(outputs, labels):
    z = F.normalize(outputs, dim=1)
    similar = z @ z.T / 0.5 - 1e9 * torch.eye(len(labels))
    log_p = similar - similar.logsumexp(1, keepdim=True)
    is_pair = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
    return -((log_p * is_pair).sum(1) / is_pair.sum(1).clamp(min=1)).mean()


def hardest_triplets(outputs, labels):
    distance, is_same = torch.cdist(outputs, outputs), labels[:, None] == labels
    return F.relu((distance * is_same).amax(1) - (distance + 1e3 * is_same).amin(1) + 1).mean()


def dice(outputs, labels):
    p, targets = outputs.softmax(1), F.one_hot(labels, NUM_CLASSES)
    return 1 - (2 * (p * targets).sum(0) / (p.sum(0) + targets.sum(0) + 1)).mean()


def smoothed_divergence(outputs, labels):
    return F.kl_div(outputs.log_softmax(1), F.one_hot(labels, NUM_CLASSES) * 0.9 + 0.025, reduction="batchmean")


def quantiles(outputs, labels):
    errors, q = labels[:, None] - outputs, torch.tensor([0.1, 0.3, 0.7, 0.9], dtype=outputs.dtype)
    return torch.maximum(q * errors, (q - 1) * errors).mean()


def ranking(outputs, labels):
    scores = outputs[:, 0]
    order = torch.sign((labels[:-1] - labels[1:]).to(scores))
    return F.margin_ranking_loss(scores[:-1], scores[1:], order, margin=0.2)


def cosines(outputs, labels):
    return F.cosine_embedding_loss(outputs, outputs.roll(1, 0), torch.where(labels > 1, 1.0, -1.0).to(outputs))


def connectionist(outputs, labels):
    log_p = outputs.expand(5, -1, -1).log_softmax(-1)
    lengths = torch.full((NUM_SAMPLES,), 5), torch.ones(NUM_SAMPLES, dtype=torch.long)
    return F.ctc_loss(log_p, labels[:, None] % 3 + 1, *lengths)


def categorical(outputs, labels):
    return -distributions.Categorical(logits=outputs).log_prob(labels).mean()


def variational(outputs, labels):
    posterior = distributions.Normal(outputs[:, 0], F.softplus(outputs[:, 1]) + 0.1)
    prior = distributions.Normal(0.0, 1.0)
    return -posterior.log_prob(labels.to(outputs)).mean() + distributions.kl_divergence(posterior, prior).mean()


def entropy(outputs, labels):
    p = outputs.softmax(1)
    return F.cross_entropy(outputs, labels) + 0.1 * (p * p.clamp(min=1e-8).log()).sum(1).mean()


def sorted_ones(outputs, labels):
    return (outputs.sort(1).values - torch.arange(NUM_CLASSES)).square().mean() + outputs.cumsum(1)[:, -1].mean()


def spectrum(outputs, labels):
    return F.cross_entropy(outputs, labels) + torch.fft.rfft(outputs).abs().mean()


def singular_values(outputs, labels):
    return F.cross_entropy(outputs, labels) + 0.1 * torch.linalg.svdvals(outputs).sum()


def several_solutions(outputs, labels):
    """Two matrices, as many as there are members, and one right-hand side."""
    matrices = torch.stack([outputs[:4], outputs[4:8]]) + 5 * torch.eye(NUM_CLASSES)
    return torch.linalg.solve(matrices, outputs[8:].T[:, :3]).square().mean() + F.cross_entropy(outputs, labels)


def determinant(outputs, labels):
    covariance = torch.einsum("bi,bj->ij", outputs, outputs) / NUM_SAMPLES + torch.eye(NUM_CLASSES)
    return F.cross_entropy(outputs, labels) - torch.logdet(covariance)


def means_of_classes(outputs, labels):
    sums = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=outputs.dtype).index_add(0, labels, outputs)
    return sums.square().mean()


def changed_in_place(outputs, labels):
    outputs = outputs * 1
    outputs[:, 0] += 1
    outputs.mul_(2)
    return F.cross_entropy(outputs, labels)


def in_slices(outputs, labels):
    slices = [slice(begin, begin + 3) for begin in range(0, NUM_SAMPLES, 3)]
    return sum(F.cross_entropy(outputs[own], labels[own]) for own in slices) / len(slices)


def with_missing_targets(outputs, labels):
    errors = torch.where(labels == 0, torch.nan, (outputs[:, 0] - labels).square())
    return torch.nanmean(errors)


def weighted_by_counts(outputs, labels):
    weight = 1 / (torch.bincount(labels, minlength=NUM_CLASSES).to(outputs) + 1)
    return F.cross_entropy(outputs, labels, weight=weight)


def gradient_penalty(model, batch):
    inputs = batch[0].clone().requires_grad_()
    outputs = model(inputs)
    (grad,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
    return F.cross_entropy(outputs, batch[1]) + 0.1 * grad.square().mean()


def adversarial(model, batch):
    inputs = batch[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(inputs), batch[1]), inputs)
    return F.cross_entropy(model((inputs + 0.05 * grad.sign()).detach()), batch[1])


def pseudo_labels(model, batch):
    with torch.no_grad():
        labels = model(batch[0]).argmax(1)
    return F.cross_entropy(model(batch[0] + 0.01), labels) + F.cross_entropy(model(batch[0]), batch[1])


def with_norms(model, batch):
    norms = sum(torch.linalg.vector_norm(p) for name, p in model.named_parameters() if "weight" in name)
    return (
        F.cross_entropy(model(batch[0]), batch[1])
        + 1e-2 * norms
        + 1e-3 * sum(p.abs().sum() for p in model.parameters())
    )


def on_lists(model, batch):
    parameters = list(model.parameters())
    changed = torch._foreach_mul(parameters, 2.0)
    torch._foreach_lerp_(changed, parameters, 0.3)
    norms = torch.nn.utils.get_total_norm(parameters) + sum(torch._foreach_norm(changed, 1))
    return F.cross_entropy(model(batch[0]), batch[1]) + 1e-3 * norms


def checkpointed(model, batch):
    return F.cross_entropy(checkpoint(model, batch[0], use_reentrant=False), batch[1])


def functional(model, batch):
    return F.cross_entropy(functional_call(model, dict(model.named_parameters()), (batch[0],)), batch[1])


def mapped_over_samples(model, batch):
    return vmap(lambda inputs, label: F.cross_entropy(model(inputs), label))(*batch).mean()


def clamped_before(model, batch):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-1, 1)
    return F.cross_entropy(model(batch[0]), batch[1])


LOSSES = [
    focal,
    hardest,
    above_the_mean,
    angular_margin,
    supervised_contrastive,
    hardest_triplets,
    dice,
    smoothed_divergence,
    quantiles,
    ranking,
    cosines,
    connectionist,
    categorical,
    variational,
    entropy,
    sorted_ones,
    spectrum,
    singular_values,
    several_solutions,
    determinant,
    means_of_classes,
    changed_in_place,
    in_slices,
    with_missing_targets,
    weighted_by_counts,
]
STEPS = [
    gradient_penalty,
    adversarial,
    pseudo_labels,
    with_norms,
    on_lists,
    checkpointed,
    functional,
    mapped_over_samples,
    clamped_before,
]


def make_task(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES)).double()
    batches = [
        (torch.randn(NUM_SAMPLES, 6, dtype=torch.float64), torch.randint(NUM_CLASSES, (NUM_SAMPLES,))) for _ in range(7)
    ]
    how = {"training_step": loss} if loss in STEPS else {"loss_fn": loss}
    return vs.Task(model, batches, optimizer=lambda params: torch.optim.Adam(params, lr=0.01), **how)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("loss", [*LOSSES, *STEPS], ids=lambda loss: loss.__name__)
def test_loss_trains_as_in_a_plain_loop(loss, engine):
    runs = vs.sweep(
        make_task(loss), lrs=np.array([0.03, 0.3]), num_steps=NUM_STEPS, engine=engine, divergence_factor=None
    )
    assert runs.engine.startswith(engine), "none of these keeps members from being batched"
    # Distances have no gradient by the last bias but rounding, which Adam takes for whole steps.
    stock.assert_equal(runs, make_task(loss), NUM_STEPS, rtol=1e-7)


def test_systems_that_pytorch_cannot_map_rightly_are_solved_one_member_after_another():
    def several_sides(outputs, labels):
        """One matrix, factorised, and several right-hand sides."""
        factors = torch.linalg.lu_factor(outputs[:4] + 5 * torch.eye(NUM_CLASSES))
        solved = torch.linalg.lu_solve(*factors, outputs[4:].unflatten(0, (2, 4)))
        return solved.square().mean() + F.cross_entropy(outputs, labels)

    with pytest.warns(vs.FallbackWarning, match="`linalg_lu_solve` is given matrices and right-hand sides in several"):
        runs = vs.sweep(make_task(several_sides), lrs=np.array([0.03, 0.3]), num_steps=6, engine="vectorized")
    stock.assert_equal(runs, make_task(several_sides), 6, rtol=1e-7)
