"""Rules below vmap, each against a loop over members on stock torch."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree
from vecsweep.kernels._trace import trace
from vecsweep.kernels.rules import RULES, MemberRules, OpenDraws, Recorder
from vecsweep.kernels.rules import attention as attention_rule

pytestmark = pytest.mark.usefixtures("float64")

NUM_MEMBERS = 3


@dataclass
class Case:
    """A function of one member's tensors, and which of them members may share.

    Attributes:
        function: what is computed.
        shapes: of its tensors.
        own: for each tensor 1 if members have their own, 0 if they share one; all that there are, if empty.
        bounds: of those tensors that are indices, by position.
        buffers: the positions of positive numbers without gradients, which the function may change and returns.
    """

    function: Callable
    shapes: list[tuple[int, ...]]
    own: str = ""
    bounds: dict[int, int] = field(default_factory=dict)
    buffers: tuple[int, ...] = ()

    def variants(self):
        return self.own.split() or ["".join(bits) for bits in itertools.product("10", repeat=len(self.shapes))][:-1]


def norm(function, training, **options):
    """A norm with running statistics, which it returns."""

    def call(x, weight, bias, mean, var):
        return function(x, mean, var, weight, bias, training, **options), mean, var

    return call


def recurrent(module, own, *inputs):
    """A recurrent module as a function of its input and initial state, of the shapes given, and of its parameters."""
    parameters = dict(module.named_parameters())

    def call(x, *rest):
        state, values = rest[: len(inputs) - 1], rest[len(inputs) - 1 :]
        state = state if len(state) > 1 else state[0] if state else None
        return functional_call(module, dict(zip(parameters, values, strict=True)), (x, state))

    shapes = [*inputs, *(p.shape for p in parameters.values())]
    own = ["1", *own.split()]
    return Case(call, shapes, " ".join(o.ljust(len(shapes), o[-1]) for o in own))


def with_options(function, **options):
    return lambda *tensors: function(*tensors, **options)


def attention(**options):
    return with_options(F.scaled_dot_product_attention, **options)


# Initial states and their parameters, frozen or not; the last mark goes for all that follow.
STATES = "001 110 010 1010 01101"
LSTM_SHAPES = [(5, 4, 3), (1, 4, 2), (1, 4, 2)]
NORM_WEIGHTS, LARGE = [(4,), (4,)], [(16, 32, 64), (64,), (64,)]
NORM_STATS = [(4,), (4,), (4,), (4,)]
OWN_STATS = "11111 01111 10111 10011 11011 00111 00011"

CASES = {
    "linear": Case(F.linear, [(5, 4), (3, 4), (3,)]),
    "linear-broad": Case(F.linear, [(5, 4), (33, 4), (33,)]),
    "addmm": Case(torch.addmm, [(3,), (5, 4), (4, 3)]),
    "linear-3d": Case(F.linear, [(2, 5, 4), (3, 4)]),
    "conv1d": Case(with_options(F.conv1d, stride=2, padding=1), [(2, 3, 8), (4, 3, 3), (4,)]),
    "conv2d": Case(with_options(F.conv2d, padding="same"), [(2, 3, 5, 5), (4, 3, 3, 3), (4,)]),
    "conv2d-grouped": Case(with_options(F.conv2d, groups=2, dilation=2), [(2, 4, 6, 6), (4, 2, 2, 2)]),
    "conv3d": Case(F.conv3d, [(2, 2, 3, 4, 3), (3, 2, 2, 2, 2), (3,)]),
    "cross-entropy": Case(F.cross_entropy, [(6, 5), (6,)], "11 10", {1: 5}),
    "cross-entropy-of-positions": Case(
        with_options(F.cross_entropy, ignore_index=2, reduction="sum"), [(2, 5, 3), (2, 3)], "11 10", {1: 5}
    ),
    "cross-entropy-weighted": Case(
        lambda x, y: F.cross_entropy(x, y, torch.arange(1.0, 6.0, device=x.device)), [(6, 5), (6,)], "11 10", {1: 5}
    ),
    "attention": Case(attention(is_causal=True), [(2, 2, 4, 3)] * 3),
    "attention-masked": Case(attention(), [(2, 4, 3), (2, 5, 3), (2, 5, 2), (4, 5)]),
    "attention-mask-of-each": Case(attention(), [(2, 4, 3), (2, 5, 3), (2, 5, 2), (2, 4, 5)]),
    "attention-dropout": Case(attention(dropout_p=0.4), [(2, 4, 3), (2, 4, 3), (2, 4, 2)], "111 101"),
    "weight-norm": Case(with_options(torch._weight_norm, dim=0), [(4, 3, 2), (4, 1, 1)]),
    "max-pool-of-relu": Case(lambda x: F.max_pool2d(F.relu(x), 2), [(3, 2, 4, 6)]),
    "max-pool-of-relu-padded": Case(
        lambda x: F.max_pool2d(F.relu(x), 3, stride=2, padding=1, ceil_mode=True), [(3, 2, 6, 7)]
    ),
    "max-pool-of-relu-used-twice": Case(lambda x: (lambda y: F.max_pool2d(y, 2) * y.mean())(F.relu(x)), [(3, 2, 4, 4)]),
    "layer-norm": Case(lambda x, w, b: F.layer_norm(x, (64,), w, b), LARGE),
    "layer-norm-no-bias": Case(lambda x, w: F.layer_norm(x, (64,), w), LARGE[:2]),
    "layer-norm-2d": Case(lambda x, w, b: F.layer_norm(x, (32, 64), w, b), [(16, 32, 64), (32, 64), (32, 64)], "111"),
    "group-norm": Case(lambda x, w, b: F.group_norm(x, 2, w, b), [(3, 4, 5, 2), *NORM_WEIGHTS]),
    "group-norm-plain": Case(lambda x: F.group_norm(x, 2), [(3, 4, 5)]),
    "batch-norm-1d": Case(norm(F.batch_norm, True), [(6, 4), *NORM_STATS], f"{OWN_STATS} 01000", {}, (3, 4)),
    "batch-norm-2d": Case(norm(F.batch_norm, True, momentum=0.3), [(3, 4, 2, 2), *NORM_STATS], OWN_STATS, {}, (3, 4)),
    "batch-norm-3d": Case(norm(F.batch_norm, True), [(2, 4, 2, 1, 3), *NORM_STATS], "11111", {}, (3, 4)),
    "batch-norm-sequence": Case(norm(F.batch_norm, True), [(3, 4, 5), *NORM_STATS], "11111", {}, (3, 4)),
    "batch-norm-eval": Case(norm(F.batch_norm, False), [(3, 4, 2), *NORM_STATS], "", {}, (3, 4)),
    "batch-norm-untracked": Case(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True), [(6, 4), *NORM_WEIGHTS], "111 110 101 011 100 001"
    ),
    "batch-norm-plain": Case(lambda x: F.batch_norm(x, None, None, training=True), [(6, 4, 2)]),
    "instance-norm": Case(norm(F.instance_norm, True), [(3, 4, 5), *NORM_STATS], OWN_STATS, {}, (3, 4)),
    "instance-norm-eval": Case(norm(F.instance_norm, False), [(3, 4, 2, 2), *NORM_STATS], OWN_STATS, {}, (3, 4)),
    "instance-norm-plain": Case(F.instance_norm, [(3, 4, 2, 2)]),
    "embedding": Case(F.embedding, [(2, 4), (5, 3)], "", {0: 5}),
    "one hot": Case(lambda indices, x: x * F.one_hot(indices, 5), [(2, 4), (2, 4, 5)], "", {0: 5}),
    "embedding-padded": Case(with_options(F.embedding, padding_idx=-4), [(2, 4), (5, 3)], "", {0: 5}),
    "lstm": recurrent(nn.LSTM(3, 2), STATES, *LSTM_SHAPES),
    "lstm-batch-first": recurrent(nn.LSTM(3, 2, batch_first=True), "01", (4, 5, 3)),
    "lstm-deep-bidirectional": recurrent(
        nn.LSTM(3, 2, num_layers=2, bidirectional=True), "0001", (5, 4, 3), (4, 4, 2), (4, 4, 2)
    ),
    "lstm-projected": recurrent(
        nn.LSTM(3, 4, proj_size=2, bidirectional=True), "0001", (5, 2, 3), (2, 2, 2), (2, 2, 4)
    ),
    "lstm-dropout": recurrent(nn.LSTM(3, 2, num_layers=3, dropout=0.4), "01", (5, 4, 3)),
    "lstm-no-bias": recurrent(nn.LSTM(3, 2, bias=False), "01", (5, 4, 3)),
    "lstm-unbatched": recurrent(nn.LSTM(3, 2), "01", (5, 3), (1, 2), (1, 2)),
    "lstm-one-step": recurrent(nn.LSTM(3, 2), "01", (1, 4, 3)),
    "gru": recurrent(nn.GRU(3, 2, num_layers=2), "01 10 1100011", (5, 4, 3), (2, 4, 2)),
    "gru-bidirectional": recurrent(nn.GRU(3, 2, bidirectional=True, bias=False), "01", (5, 4, 3)),
    "rnn-tanh": recurrent(nn.RNN(3, 2), "01 10", (5, 4, 3), (1, 4, 2)),
    "rnn-relu": recurrent(nn.RNN(3, 2, nonlinearity="relu", batch_first=True), "01 10", (4, 5, 3)),
    "lstm-cell": recurrent(nn.LSTMCell(3, 2), "01 110", (4, 3), (4, 2), (4, 2)),
    "gru-cell": recurrent(nn.GRUCell(3, 2), "01 10", (4, 3), (4, 2)),
    "rnn-tanh-cell": recurrent(nn.RNNCell(3, 2, bias=False), "01", (4, 3)),
    "rnn-relu-cell": recurrent(nn.RNNCell(3, 2, nonlinearity="relu"), "01 10", (4, 3), (4, 2)),
}
VARIANTS = [(name, own) for name, case in CASES.items() for own in case.variants()]


def make(case, own, dim, seed=0):
    """Random tensors, with the member axis at `dim` where members have their own."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for i, (shape, is_own) in enumerate(zip(case.shapes, own, strict=True)):
        shape = (NUM_MEMBERS, *shape) if is_own == "1" else shape
        is_index = i in case.bounds
        tensor = torch.randint(case.bounds[i], shape, generator=generator) if is_index else torch.empty(shape)
        tensor = tensor if is_index else tensor.normal_(generator=generator)
        tensor = tensor.abs() + 0.1 if i in case.buffers else tensor
        tensors.append(tensor.movedim(0, dim).contiguous() if is_own == "1" else tensor)
    return stock.placed(tensors)


def by_rules(case, own, dim, placed=lambda drawn: drawn):
    """All members at once; what the function draws is drawn before, and goes where `placed` puts it."""
    one = [t[0] if is_own == "1" else t for t, is_own in zip(make(case, own, 0), own, strict=True)]
    with Recorder() as recorder:
        case.function(*one)
    torch.manual_seed(1)
    drawn = placed([draw() for draw in recorder.draws])

    def member(*tensors):
        with MemberRules(recorder.draws, drawn):
            return case.function(*tensors)

    return vmap(member, in_dims=tuple(dim if is_own == "1" else None for is_own in own))


def by_loop(case, own, dim):
    """Member by member, from tensors of their own."""

    def call(*tensors):
        results = []
        for m in range(NUM_MEMBERS):
            torch.manual_seed(1)
            # Copies, for a function may change its buffers, and batch norm's backward errs where weights have strides.
            one = [(t.select(dim, m) if is_own == "1" else t).clone() for t, is_own in zip(tensors, own, strict=True)]
            with OpenDraws():
                results.append(pytree.tree_leaves(case.function(*one)))
        return [torch.stack(result) for result in zip(*results, strict=True)]

    return call


def value_and_grads(call, case, tensors):
    """What a call gives, and the gradients of some function of it by all tensors that have any."""
    trained = [i for i in range(len(tensors)) if i not in case.bounds and i not in case.buffers]
    tensors = [t.detach().clone().requires_grad_(i in trained) for i, t in enumerate(tensors)]
    results = pytree.tree_leaves(call(*tensors))
    loss = sum((r * torch.linspace(-1, 1, r.numel(), device=r.device).reshape(r.shape)).sum() for r in results)
    return [*(r.detach() for r in results), *torch.autograd.grad(loss, [tensors[i] for i in trained])]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize(("name", "own"), VARIANTS)
def test_rule_computes_what_torch_does_and_its_gradients(name, own, dim):
    case = CASES[name]
    tensors = make(case, own, dim)
    results = value_and_grads(by_rules(case, own, dim), case, tensors)
    expected = value_and_grads(by_loop(case, own, dim), case, tensors)
    torch.testing.assert_close(results, expected, rtol=1e-10, atol=1e-10)
    assert any(bool(tensor.any()) for tensor in expected)


@pytest.mark.parametrize(("name", "own"), [(name, case.variants()[0]) for name, case in CASES.items()])
def test_trace_of_a_rule_computes_the_same_of_other_numbers(name, own):
    case = CASES[name]
    call = by_rules(case, own, 0)
    graph = trace(lambda *tensors: value_and_grads(call, case, tensors), make(case, own, 0)).module()
    others = make(case, own, 0, seed=1)
    torch.testing.assert_close(
        graph(*others), value_and_grads(by_loop(case, own, 0), case, others), rtol=1e-10, atol=1e-10
    )


def test_table_has_a_case_for_every_rule_and_no_case_is_left_to_vmap(monkeypatch):
    taken = set()

    def spied(function, rule):
        def call(*args, **kwargs):
            result = rule(*args, **kwargs)
            if result is not NotImplemented:
                taken.add(function)
            return result

        return call

    every = set(RULES)
    for function, rule in list(RULES.items()):
        monkeypatch.setitem(RULES, function, spied(function, rule))
    by_case = {}
    for name, case in CASES.items():
        taken.clear()
        own = case.variants()[0]
        call = by_rules(case, own, 0)
        trace(lambda *tensors, call=call: [call(*tensors)], make(case, own, 0))  # some rules are for traces alone
        by_case[name] = set(taken)
    assert [name for name, functions in by_case.items() if not functions] == []
    assert every == set().union(*by_case.values())


@pytest.mark.parametrize("most", [1, 4, 5])
@pytest.mark.parametrize("name", ["attention", "attention-masked", "attention-mask-of-each"])
def test_attention_over_more_batches_than_a_kernel_takes_is_divided(monkeypatch, name, most):
    monkeypatch.setattr(attention_rule, "_MAX_BATCH", most)
    case, sizes, fused = CASES[name], [], F.scaled_dot_product_attention

    def noted(query, *args, **kwargs):
        sizes.append(len(query))
        return fused(query, *args, **kwargs)

    own = case.variants()[0]
    expected = value_and_grads(by_loop(case, own, 0), case, make(case, own, 0))
    call = by_rules(case, own, 0)
    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    torch.testing.assert_close(value_and_grads(call, case, make(case, own, 0)), expected, rtol=1e-10, atol=1e-10)
    assert sizes == {1: [2, 2, 2], 4: [4, 2], 5: [4, 2]}[most]


def lstm(*, own="01"):
    """An LSTM and its members' tensors: input, then parameters."""
    case = recurrent(nn.LSTM(3, 2), own, (5, 4, 3))
    return case, case.variants()[-1]


def test_gradient_of_a_recurrent_layer_says_that_it_cannot_be_differentiated():
    case, own = lstm()
    tensors = [t.requires_grad_() for t in make(case, own, 0)]
    outputs = by_rules(case, own, 0)(*tensors)[0]
    with pytest.raises(RuntimeError, match="drop `create_graph=True`"):
        torch.autograd.grad(outputs.square().sum(), tensors, create_graph=True)


def test_outputs_of_a_recurrent_layer_may_be_changed_in_place():
    case, own = lstm()
    tensors = make(case, own, 0)
    function = case.function
    case.function = lambda *tensors: function(*tensors)[0].mul_(2)
    results = value_and_grads(by_rules(case, own, 0), case, tensors)
    case.function = lambda *tensors: function(*tensors)[0] * 2
    torch.testing.assert_close(results, value_and_grads(by_loop(case, own, 0), case, tensors))


def test_recurrent_layer_under_autocast_computes_in_its_dtype():
    case, own = lstm()
    tensors = [t.float() for t in make(case, own, 0)]
    with torch.autocast("cpu", torch.bfloat16):
        results = value_and_grads(by_rules(case, own, 0), case, tensors)
        expected = value_and_grads(by_loop(case, own, 0), case, tensors)
    assert [r.dtype for r in results] == [torch.bfloat16] * 3 + [torch.float32] * 5
    torch.testing.assert_close(results, expected, rtol=5e-2, atol=5e-2)


def test_recurrent_layer_that_members_share_is_left_to_torch(monkeypatch):
    case, own = lstm(own="00")
    results = []
    rule = RULES[torch.lstm]
    monkeypatch.setitem(RULES, torch.lstm, lambda *args, **kw: results.append(rule(*args, **kw)) or results[-1])
    function = case.function
    case.function = lambda scale, *tensors: function(*tensors)[0] * scale
    case.shapes.insert(0, ())
    own = f"1{own}"
    tensors = make(case, own, 0)
    torch.testing.assert_close(by_rules(case, own, 0)(*tensors), by_loop(case, own, 0)(*tensors)[0])
    assert results == [NotImplemented]


@pytest.mark.parametrize("name", ["batch-norm-2d", "instance-norm"])
def test_members_with_inputs_of_their_own_cannot_share_the_statistics_that_they_change(name):
    case = CASES[name]
    with pytest.raises(RuntimeError, match="were not batched"):
        by_rules(case, "11100", 0)(*make(case, "11100", 0))


@pytest.mark.parametrize("bias", [(3,), (5, 3)], ids=["scaled", "of a matrix"])
def test_addmm_of_another_kind_is_left_to_vmap_and_as_in_a_loop(bias):
    case = Case(with_options(torch.addmm, beta=0.5 if bias == (3,) else 1), [bias, (5, 4), (4, 3)])
    tensors = make(case, "011", 0)
    expected = value_and_grads(by_loop(case, "011", 0), case, tensors)
    torch.testing.assert_close(value_and_grads(by_rules(case, "011", 0), case, tensors), expected)
