"""Every update against its torch.optim class: the oracle is a stock optimizer for each member."""

from contextlib import contextmanager

import pytest
import stock
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop
from vecsweep.kernels.updates import UPDATES

NUM_STEPS = 20
NUM_MEMBERS = 3
SHAPES = [(4, 3), ()]
# How a torch.optim class is run, not what it computes.
EXECUTION = {"params", "foreach", "capturable", "differentiable", "fused"}


def case(optimizer, **hyper):
    text = ", ".join(f"{name}={value}" for name, value in hyper.items())
    return pytest.param(optimizer, hyper, id=f"{optimizer.__name__}({text})")


# A new optimizer, or a new option of one, is a line here. The first line of a class is its defaults.
SAME_FOR_ALL = [
    case(SGD),
    case(SGD, maximize=True),
    case(SGD, weight_decay=0.1),
    case(SGD, weight_decay=0.1, maximize=True),
    case(SGD, dampening=0.3),
    case(SGD, momentum=0.9),
    case(SGD, momentum=0.9, maximize=True),
    case(SGD, momentum=0.9, weight_decay=0.1),
    case(SGD, momentum=0.9, dampening=0.3),
    case(SGD, momentum=0.9, dampening=0.3, weight_decay=0.1, maximize=True),
    case(SGD, momentum=0.9, nesterov=True),
    case(SGD, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True),
    case(Adam),
    case(Adam, betas=(0.5, 0.7), eps=1e-3),
    case(Adam, betas=(0.0, 0.9)),
    case(Adam, maximize=True),
    case(Adam, weight_decay=0.1),
    case(Adam, amsgrad=True),
    case(Adam, amsgrad=True, betas=(0.9, 0.5), weight_decay=0.1, maximize=True),
    case(Adam, decoupled_weight_decay=True, weight_decay=0.1),
    case(AdamW),
    case(AdamW, weight_decay=0.0),
    case(AdamW, weight_decay=0.3, maximize=True),
    case(AdamW, amsgrad=True, betas=(0.9, 0.5)),
    case(NAdam),
    case(NAdam, maximize=True),
    case(NAdam, weight_decay=0.1),
    case(NAdam, weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
    case(NAdam, momentum_decay=0.5, betas=(0.8, 0.95), eps=1e-3),
    case(NAdam, momentum_decay=0),
    case(RAdam),
    case(RAdam, maximize=True),
    case(RAdam, weight_decay=0.1),
    case(RAdam, weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
    case(RAdam, betas=(0.8, 0.9), eps=1e-3),
    case(RAdam, betas=(0.8, 0.5)),  # too short a memory ever to be rectified
    case(Adamax),
    case(Adamax, betas=(0.5, 0.7), eps=1e-2),
    case(Adamax, weight_decay=0.1),
    case(Adamax, weight_decay=0.1, maximize=True),
    case(Adagrad),
    case(Adagrad, lr_decay=0.3),
    case(Adagrad, initial_accumulator_value=0.5, eps=1e-2),
    case(Adagrad, lr_decay=0.3, weight_decay=0.1, initial_accumulator_value=0.5, maximize=True),
    case(Adadelta),
    case(Adadelta, rho=0.5, eps=1e-2),
    case(Adadelta, weight_decay=0.1),
    case(Adadelta, weight_decay=0.1, maximize=True),
    case(RMSprop),
    case(RMSprop, alpha=0.5, eps=1e-2),
    case(RMSprop, weight_decay=0.1),
    case(RMSprop, centered=True),
    case(RMSprop, momentum=0.9),
    case(RMSprop, momentum=0.9, centered=True, weight_decay=0.1, maximize=True),
]

# A list is one value for each member. Zeros are there to meet torch's own paths for zero.
ONE_PER_MEMBER = [
    case(SGD, weight_decay=[0.0, 0.1, 0.01]),
    case(SGD, momentum=[0.0, 0.9, 0.5]),
    case(SGD, momentum=[0.9, 0.8, 0.5], nesterov=True, weight_decay=[0.0, 0.1, 0.01]),
    case(SGD, momentum=[0.0, 0.9, 0.5], dampening=0.3),
    case(SGD, momentum=0.9, dampening=[0.0, 0.3, 0.1]),
    case(SGD, momentum=[0.0, 0.9, 0.5], dampening=[0.3, 0.0, 0.1], maximize=True),
    case(Adam, betas=[(0.0, 0.9), (0.9, 0.999), (0.5, 0.7)], weight_decay=[0.0, 0.1, 0.01]),
    case(Adam, eps=[1e-8, 1e-3, 1e-1], amsgrad=True, betas=[(0.9, 0.5), (0.9, 0.999), (0.5, 0.7)]),
    case(AdamW, betas=[(0.0, 0.9), (0.9, 0.999), (0.5, 0.7)], weight_decay=[0.0, 0.1, 0.01]),
    case(NAdam, betas=[(0.8, 0.9), (0.9, 0.999), (0.5, 0.7)], momentum_decay=[0.0, 0.5, 0.004]),
    case(NAdam, weight_decay=[0.0, 0.1, 0.01], eps=[1e-8, 1e-3, 1e-1], decoupled_weight_decay=True),
    case(RAdam, betas=[(0.8, 0.9), (0.9, 0.999), (0.5, 0.5)], weight_decay=[0.0, 0.1, 0.01]),
    case(RAdam, weight_decay=[0.0, 0.1, 0.01], eps=[1e-8, 1e-3, 1e-1], decoupled_weight_decay=True),
    case(Adamax, betas=[(0.8, 0.9), (0.9, 0.999), (0.5, 0.7)], weight_decay=[0.0, 0.1, 0.01]),
    case(Adamax, eps=[1e-8, 1e-3, 1e-1]),
    case(Adagrad, lr_decay=[0.0, 0.3, 0.1], weight_decay=[0.0, 0.1, 0.01], eps=[1e-8, 1e-3, 1e-1]),
    case(Adagrad, initial_accumulator_value=[0.0, 0.5, 0.1]),
    case(Adadelta, rho=[0.9, 0.5, 0.99], weight_decay=[0.0, 0.1, 0.01], eps=[1e-8, 1e-3, 1e-1]),
    case(RMSprop, alpha=[0.99, 0.5, 0.9], weight_decay=[0.0, 0.1, 0.01], eps=[1e-8, 1e-3, 1e-1]),
    case(RMSprop, alpha=[0.99, 0.5, 0.9], momentum=[0.0, 0.9, 0.5], centered=True),
]

every_case = pytest.mark.parametrize(("optimizer", "hyper"), SAME_FOR_ALL + ONE_PER_MEMBER)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_optimizer = pytest.mark.parametrize("optimizer", UPDATES, ids=lambda optimizer: optimizer.__name__)


@contextmanager
def scalar_state_in_float64():
    """Make the oracle exact: torch.optim keeps scalar state such as `mu_product` in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def problem(shape, dtype=torch.float64):
    """Return initial params [member, *shape], grads [step, member, *shape] and lrs [step, member].

    Member 0 starts with a zero gradient, and member 1 with an lr of zero, as warm-up does.
    """
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(NUM_MEMBERS, *shape, generator=generator, dtype=dtype)
    grads = torch.randn(NUM_STEPS, NUM_MEMBERS, *shape, generator=generator, dtype=dtype)
    grads[0, 0] = 0
    fade = torch.linspace(1, 0.1, NUM_STEPS, dtype=torch.float64)
    lrs = fade[:, None] * torch.tensor([0.1, 0.02, 0.3], dtype=torch.float64)
    lrs[0, 1] = 0
    return stock.placed((params, grads, lrs))


def of_member(hyper, member):
    """Return what a stock optimizer of this member is constructed with."""
    return {name: value[member] if isinstance(value, list) else value for name, value in hyper.items()}


def stacked(values):
    """Return one float64 tensor [member], or a tuple of them for a list of tuples."""
    if isinstance(values[0], tuple):
        return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True))
    return torch.tensor(values, dtype=torch.float64)


def stacked_hyper(optimizer, hyper):
    """Return the update's hyperparameters, but for lr: from a parameter group, lists as [member] tensors."""
    group = optimizer([torch.zeros(1)], **of_member(hyper, 1)).param_groups[0]
    group |= stock.placed({name: stacked(value) for name, value in hyper.items() if isinstance(value, list)})
    return {name: group[name] for name in UPDATES[optimizer].hyperparameters if name != "lr"}


def trained(optimizer, hyper, params, grads, lrs, step=None):
    """Return params and state after all steps of the update, or of a `step` in its place."""
    update, hyper = UPDATES[optimizer], stacked_hyper(optimizer, hyper)
    state = update.init(params, lr=lrs[0], **hyper)
    for grad, lr in zip(grads, lrs, strict=True):
        if step is None:
            params, state = update.apply(params, grad, state, lr=lr, **hyper)
        else:
            params, state = step(params, grad, state, lr)
    return params, state


def trained_by_torch(optimizer, hyper, param, grads, lrs):
    """Return one member's param and state after all steps of a stock optimizer."""
    param = param.clone().requires_grad_()
    stock = optimizer([param], lr=1.0, foreach=False, **hyper)
    with scalar_state_in_float64():
        for grad, lr in zip(grads, lrs, strict=True):
            param.grad = grad.clone()
            stock.param_groups[0]["lr"] = lr.item()
            stock.step()
    return param.detach(), stock.state[param]


def assert_equals_torch(result, optimizer, hyper, problem, rtol, atol):
    params, state = result
    initial, grads, lrs = problem
    for member in range(NUM_MEMBERS):
        expected_param, expected_state = trained_by_torch(
            optimizer, of_member(hyper, member), initial[member], grads[:, member], lrs[:, member]
        )
        torch.testing.assert_close(params[member], expected_param, rtol=rtol, atol=atol)
        for name, expected in expected_state.items():
            if name in state and isinstance(expected, Tensor):
                own = state[name][member].to(expected.device)  # torch counts steps on the CPU
                torch.testing.assert_close(own, expected, rtol=rtol, atol=atol, check_dtype=False)


@pytest.mark.usefixtures("device")
@every_shape
@every_case
def test_every_member_equals_a_stock_optimizer_at_its_own_lr(optimizer, hyper, shape):
    given = problem(shape)
    result = trained(optimizer, hyper, *given)
    assert_equals_torch(result, optimizer, hyper, given, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("device")
@every_shape
@every_case
def test_in_float32_every_member_stays_within_rounding_of_a_stock_optimizer(optimizer, hyper, shape):
    given = problem(shape, torch.float32)
    result = trained(optimizer, hyper, *given)
    assert_equals_torch(result, optimizer, hyper, given, rtol=1e-5, atol=1e-6)


@every_case
def test_a_trace_made_at_other_lrs_equals_a_stock_optimizer(optimizer, hyper):
    params, grads, lrs = problem((4, 3))
    fixed = stacked_hyper(optimizer, hyper)
    state = UPDATES[optimizer].init(params, lr=lrs[0], **fixed)

    def step(param, grad, state, lr):
        return UPDATES[optimizer].apply(param, grad, state, lr=lr, **fixed)

    graph = make_fx(step)(params, grads[0], state, torch.ones_like(lrs[0]))
    result = trained(optimizer, hyper, params, grads, lrs, step=graph)
    assert_equals_torch(result, optimizer, hyper, (params, grads, lrs), rtol=1e-12, atol=1e-14)


@every_shape
@every_case
def test_an_update_changes_no_input_and_returns_no_view_of_one(optimizer, hyper, shape):
    params, grads, lrs = problem(shape)
    params, state = trained(optimizer, hyper, params, grads[:2], lrs[:2])
    inputs = [params, grads[2], lrs[2], *state.values()]
    copies = [tensor.clone() for tensor in inputs]
    addresses = {tensor.untyped_storage().data_ptr() for tensor in inputs}

    hyper = stacked_hyper(optimizer, hyper)
    new_params, new_state = UPDATES[optimizer].apply(params, grads[2], state, lr=lrs[2], **hyper)

    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))
    assert all(tensor.untyped_storage().data_ptr() not in addresses for tensor in (new_params, *new_state.values()))


@every_shape
@every_case
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_member_with_bad_gradients_changes_no_bit_of_the_others(optimizer, hyper, shape, bad):
    params, grads, lrs = problem(shape)
    spoilt = grads.clone()
    spoilt[5:, 1] = bad
    others = [0, 2]

    expected_params, expected_state = trained(optimizer, hyper, params, grads, lrs)
    spoilt_params, spoilt_state = trained(optimizer, hyper, params, spoilt, lrs)

    assert not torch.equal(spoilt_params[1], expected_params[1])
    assert torch.equal(spoilt_params[others], expected_params[others])
    for name, expected in expected_state.items():
        assert torch.equal(spoilt_state[name][others], expected[others]), name


@every_case
def test_a_gradient_whose_square_overflows_leaves_what_torch_leaves(optimizer, hyper):
    params, grads, lrs = problem((4, 3))
    grads[5:7, 1] = 1e200
    result, _ = trained(optimizer, hyper, params, grads, lrs)
    expected, _ = trained_by_torch(optimizer, of_member(hyper, 1), params[1], grads[:, 1], lrs[:, 1])
    torch.testing.assert_close(result[1], expected, rtol=1e-12, atol=1e-14, equal_nan=True)


@every_shape
@every_case
def test_state_has_the_shape_of_the_param_or_one_float64_per_member(optimizer, hyper, shape):
    given = problem(shape, torch.float32)
    params, state = trained(optimizer, hyper, *given)
    assert (params.shape, params.dtype) == (given[0].shape, torch.float32)
    for name, value in state.items():
        if name in {"step", "mu_product"}:
            assert (value.shape, value.dtype) == ((NUM_MEMBERS,), torch.float64), name
        else:
            assert (value.shape, value.dtype) == (params.shape, torch.float32), name


@every_optimizer
def test_every_option_of_the_class_that_changes_its_numbers_is_a_hyperparameter(optimizer):
    options = set(optimizer([torch.zeros(1)]).param_groups[0]) - EXECUTION
    assert set(UPDATES[optimizer].hyperparameters) == options


@every_optimizer
def test_the_table_of_cases_has_the_defaults_of_every_update(optimizer):
    assert case(optimizer).id in {param.id for param in SAME_FOR_ALL}
