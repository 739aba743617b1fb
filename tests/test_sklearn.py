"""Estimators of scikit-learn: its own checks, skorch's conventions, and stock PyTorch at the learning rate found."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_iris, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from vecsweep.integrations.sklearn import NeuralNetClassifier, NeuralNetRegressor

SHORT = {"max_epochs": 20, "batch_size": 32, "random_state": 0}
PARTS = (
    "parameters of parts, `optimizer__momentum` among them, go through **kwargs to attributes of their names, as in "
)
DOES_NOT_APPLY = {
    "check_no_attributes_set_in_init": f"{PARTS}skorch",
    "check_do_not_raise_errors_in_init_or_set_params": "it passes `kwargs=...`; such a name is refused at once",
}

ROUNDS = {
    "check_methods_subset_invariance": (
        "it holds predictions to float64's digits, whose type they have; the module's float32 rounds otherwise for one "
        "sample than for many on some processors"
    ),
}


@parametrize_with_checks(
    [NeuralNetClassifier(**SHORT, optimizer__momentum=0.9), NeuralNetRegressor(**SHORT, optimizer__momentum=0.9)],
    expected_failed_checks=lambda estimator: (
        DOES_NOT_APPLY | ROUNDS if isinstance(estimator, NeuralNetRegressor) else DOES_NOT_APPLY
    ),
)
def test_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_regressor_predicts_of_a_sample_alone_what_it_does_beside_others():
    X, y = make_regression(64, 8, random_state=0)
    estimator = NeuralNetRegressor(**SHORT).fit(X, y / y.std())
    alone = np.concatenate([estimator.predict(X[at : at + 1]) for at in range(len(X))])
    np.testing.assert_allclose(alone, estimator.predict(X), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


class Net(nn.Module):
    def __init__(self, num_units=8, *, ends_with=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, num_units), nn.Tanh(), nn.Linear(num_units, 3))
        self.ends_with = ends_with

    def forward(self, x):
        outputs = self.layers(x)
        return outputs if self.ends_with is None else self.ends_with(outputs)


def test_classifier_trains_as_a_plain_loop_at_the_rate_that_it_found(iris):
    X, y = iris
    net = NeuralNetClassifier(Net, module__num_units=5, **SHORT, optimizer__momentum=0.9, validation_fraction=None)
    found = net.fit(X, y).lr_
    assert net.module_.layers[0].out_features == 5
    again = clone(net).set_params(lr=found, batch_size=len(X)).fit(X, y)
    torch.manual_seed(0)
    model = clone(again).set_params(max_epochs=1, lr=1e-30).fit(X, y).module_  # its initial weights
    optimizer = torch.optim.SGD(model.parameters(), lr=found, momentum=0.9)
    inputs, targets = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    np.testing.assert_allclose(again.predict_proba(X), model(inputs).softmax(1).detach(), rtol=1e-3)


def test_classifier_gives_classes_probabilities_and_a_score(iris):
    X, y = iris
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    net = NeuralNetClassifier(Net, **SHORT, optimizer__momentum=0.9).fit(X, names)
    assert net.score(X, names) > 0.9
    assert set(net.predict(X)) == set(names)
    np.testing.assert_allclose(net.predict_proba(X).sum(axis=1), 1, rtol=1e-5)
    assert net.answer_.interval[0] <= net.answer_.lr <= net.answer_.interval[1]


def test_module_of_probabilities_is_trained_by_their_logarithm_as_in_skorch(iris):
    X, y = iris
    shared = {**SHORT, "lr": 0.3, "module": Net}
    logits = NeuralNetClassifier(**shared).fit(X, y)
    probabilities = NeuralNetClassifier(**shared, criterion=nn.NLLLoss, module__ends_with=nn.Softmax(1)).fit(X, y)
    np.testing.assert_allclose(logits.predict_proba(X), probabilities.predict_proba(X), rtol=1e-3)


@pytest.mark.parametrize("criterion", [None, nn.CrossEntropyLoss])
def test_module_of_probabilities_under_cross_entropy_is_told_of(iris, criterion):
    with pytest.warns(UserWarning, match=r"gives probabilities, .*Pass `criterion=nn.NLLLoss`"):
        NeuralNetClassifier(lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), criterion=criterion, **SHORT).fit(
            *iris
        )


def test_regressor_works_in_a_pipeline_with_scaled_targets():
    X, y = make_regression(200, 5, noise=1.0, random_state=0)
    net = NeuralNetRegressor(max_epochs=30, batch_size=32, random_state=0, optimizer__momentum=0.9)
    pipeline = make_pipeline(StandardScaler(), TransformedTargetRegressor(net, transformer=StandardScaler()))
    train_x, test_x, train_y, test_y = train_test_split(X, y, random_state=0)
    assert pipeline.fit(train_x, train_y).score(test_x, test_y) > 0.95


def test_grid_search_goes_over_parameters_of_parts(iris):
    search = GridSearchCV(
        NeuralNetClassifier(Net, **SHORT), {"module__num_units": [1, 16], "optimizer__momentum": [0.9]}, cv=2
    )
    assert search.fit(*iris).best_params_["module__num_units"] == 16


def test_fit_is_the_same_again_and_another_by_another_random_state(iris):
    one, two, other = (
        NeuralNetClassifier(Net, max_epochs=10, batch_size=16, random_state=state).fit(*iris).predict_proba(iris[0])
        for state in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_fitted_estimator_is_pickled_without_what_was_trained_besides(iris):
    net = NeuralNetClassifier(Net, **SHORT).fit(*iris)
    packed = pickle.dumps(net)
    assert len(packed) < 2_000_000
    np.testing.assert_array_equal(pickle.loads(packed).predict(iris[0]), net.predict(iris[0]))


def test_images_reach_the_module_in_their_shape():
    X = np.random.default_rng(0).normal(size=(60, 1, 4, 4))
    y = (X.mean(axis=(1, 2, 3)) > 0).astype(int)

    def build(n_outputs):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, n_outputs))

    assert NeuralNetClassifier(build, **SHORT).fit(X, y).predict(X).shape == (60,)


def test_divergence_at_a_rate_that_was_given_is_told(iris):
    net = NeuralNetRegressor(lambda: nn.Linear(4, 1), lr=1e6, **SHORT)
    with pytest.warns(ConvergenceWarning, match=r"diverged at step \d+, with `lr` 1e\+06. Take a lower one"):
        net.fit(iris[0], iris[1].astype(float))


def test_mistakes_are_told_before_any_work(iris):
    X, y = iris
    with pytest.raises(NotFittedError, match="not fitted yet"):
        NeuralNetClassifier().predict(X)
    with pytest.raises(TypeError, match=r"no parameter 'momentum'. Those of parts are named module__"):
        NeuralNetClassifier(momentum=0.9)
    with pytest.raises(ValueError, match=r"Invalid parameter 'momentum'"):
        NeuralNetClassifier().set_params(momentum=0.9)
    with pytest.raises(ValueError, match=r'`lr` must be "auto", or a positive number; got 0'):
        NeuralNetClassifier(lr=0).fit(X, y)
    with pytest.raises(ValueError, match=r"`batch_size` must be .* at least 1; got -1"):
        NeuralNetClassifier(batch_size=-1).fit(X, y)
    with pytest.raises(ValueError, match=r"two classes at least; got one class, 1"):
        NeuralNetClassifier().fit(X, np.ones(len(X), dtype=int))
    with pytest.raises(ValueError, match=r"`budget` must be at least") as caught:
        NeuralNetClassifier(max_epochs=1, find_lr__budget=1).fit(X, y)
    assert "find_lr__budget=8" in caught.value.__notes__[0]
