"""Samples of distributions that tensors give: batched, and the same as in a plain loop of each member's own."""

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import distributions, nn

import vecsweep as vs

pytestmark = pytest.mark.usefixtures("float64")

NUM_SAMPLES, NUM_CLASSES, NUM_STEPS = 20, 3, 36  # past the check at call 30
BETA = distributions.Beta(torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))
FREQUENCIES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def reinforce(model, batch):
    policy = distributions.Categorical(logits=model(batch[0]))
    actions = policy.sample()
    return -(policy.log_prob(actions) * (actions == batch[1])).mean()


def continuous_actions(model, batch):
    means = model(batch[0])
    policy = distributions.Normal(means, F.softplus(means) + 0.1)
    actions = policy.sample()
    return -(policy.log_prob(actions) * (1 - actions.square())).mean()


def contrastive_divergence(model, batch):
    outputs = model(batch[0])
    visible = torch.bernoulli(outputs.sigmoid())
    return (outputs * (1 - visible)).mean() + outputs[:, 0].square().mean()


def several_words(model, batch):
    drawn = torch.multinomial(model(batch[0]).softmax(1), 5, replacement=True)
    return F.cross_entropy(model(batch[0]), batch[1]) + (drawn * model(batch[0])[:, :1]).mean()


def two_of_three(model, batch):
    kept = torch.multinomial(model(batch[0]).softmax(1), 2)
    return model(batch[0]).gather(1, kept).square().mean() + F.cross_entropy(model(batch[0]), batch[1])


def negatives(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1]) - 0.1 * F.cross_entropy(
        model(batch[0]), FREQUENCIES.multinomial(NUM_SAMPLES, replacement=True)
    )


def masked(model, batch):
    kept = torch.bernoulli(torch.full_like(batch[0], 0.8)) * torch.bernoulli(batch[0], 0.9)
    return F.cross_entropy(model(batch[0] * kept), batch[1])


def masked_in_place(model, batch):
    kept = torch.empty_like(batch[0].T).bernoulli_(torch.full((NUM_SAMPLES,), 0.8)).T
    return F.cross_entropy(model(batch[0] * kept), batch[1])


def noisy(model, batch):
    return F.cross_entropy(model(torch.normal(batch[0], 0.1) + torch.normal(0.0, batch[0].abs())), batch[1])


def mixup(model, batch):
    share, other = BETA.sample(), torch.randperm(NUM_SAMPLES)
    outputs = model(share * batch[0] + (1 - share) * batch[0][other])
    return share * F.cross_entropy(outputs, batch[1]) + (1 - share) * F.cross_entropy(outputs, batch[1][other])


def bootstrap(model, batch):
    weights = torch.poisson(torch.ones(NUM_SAMPLES)) + distributions.Gamma(2.0, 1.0).sample((NUM_SAMPLES,))
    return (weights * F.cross_entropy(model(batch[0]), batch[1], reduction="none")).mean()


def counts_of_weights(model, batch):
    return F.poisson_nll_loss(model(batch[0]), torch.poisson(model(batch[0]).detach().exp()))


def counts_of_batch(model, batch):
    return F.poisson_nll_loss(model(batch[0]), torch.poisson(batch[0][:, :3].exp()))


STEPS = [
    reinforce,
    continuous_actions,
    contrastive_divergence,
    several_words,
    two_of_three,
    negatives,
    masked,
    masked_in_place,
    noisy,
    mixup,
    bootstrap,
]


def make_task(step):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, NUM_CLASSES))
    batches = [(torch.randn(NUM_SAMPLES, 6), torch.randint(NUM_CLASSES, (NUM_SAMPLES,))) for _ in range(3)]
    return vs.Task(model, batches, training_step=step, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_members_that_sample_are_traced_and_train_as_in_a_plain_loop(step):
    runs = vs.sweep(make_task(step), lrs=[0.03, 0.3], seeds=2, num_steps=NUM_STEPS, engine="vectorized")
    assert runs.engine.startswith("vectorized, traced")
    stock.assert_equal(runs, make_task(step), NUM_STEPS)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (counts_of_weights, "`poisson` draws from another distribution for each member"),
        (counts_of_batch, "draws other"),
    ],
    ids=["of weights", "of each batch"],
)
def test_samples_that_take_as_many_numbers_as_they_say_are_drawn_one_after_another(step, reason):
    with pytest.warns(vs.FallbackWarning, match=reason):
        runs = vs.sweep(make_task(step), lrs=[0.03, 0.3], num_steps=6, engine="vectorized")
    stock.assert_equal(runs, make_task(step), 6)


def test_probabilities_that_are_none_end_the_member_whose_they_are():
    def sampled(model, batch):
        outputs = model(batch[0])
        torch.multinomial(outputs.softmax(1), 1)
        return outputs.square().sum().exp()

    task = make_task(sampled)
    runs = vs.sweep(task, lrs=[1e-6, 1e9], num_steps=5, engine="vectorized", divergence_factor=None)
    assert runs.engine.startswith("vectorized")
    assert [member.diverged_at is None for member in runs.members] == [True, False]
    np.testing.assert_allclose(runs.train_loss[:, 0], stock.train(task, 1e-6, 5).losses, rtol=1e-9)
