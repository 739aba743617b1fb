"""Activations that are written out are computed by PyTorch's operators, and nothing else is."""

import math

import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn
from vecsweep.kernels._trace import code_of, trace

import vecsweep as vs
from vecsweep._engine.graphs import formulas
from vecsweep._engine.graphs.formulas import recognize_activations_
from vecsweep._engine.graphs.graph import simplify_

aten = torch.ops.aten
GELU, SILU = {aten.gelu.default, aten.gelu_backward.default}, {aten.silu.default, aten.silu_backward.default}


def gelu_of_gpt(x):  # transformers' "gelu_new", and nanoGPT's
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_fast(x):  # transformers' "gelu_fast"
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def gelu_by_erf(x):  # transformers' "gelu_python"
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def swish(x):
    return x * x.sigmoid()


def of_other_constants(x):
    return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * x**3)))


def of_two_inputs(x):  # a GELU of one tensor, times another
    return 0.5 * x.flip(0) * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {gelu_of_gpt: GELU, gelu_fast: GELU, gelu_by_erf: GELU, swish: SILU}


def traced(function, dtype=torch.float64):
    """The graph of a function and its gradient, and what it computes."""

    def both(x, grad):
        y = function(x)
        return [y, *torch.autograd.grad(y, x, grad)]

    torch.manual_seed(0)
    x, grad = torch.randn(50, dtype=dtype), torch.randn(50, dtype=dtype)
    result = trace(both, [x.clone().requires_grad_(), grad])
    simplify_(result.graph)
    return result, (x, grad)


def operators_of(graph):
    return {node.target for node in graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.__name__)
def test_formula_and_its_gradient_become_one_operator_each_and_compute_the_same(formula):
    result, tensors = traced(formula)
    recognize_activations_(result.graph)
    assert operators_of(result.graph) == FORMULAS[formula]
    with torch.no_grad():
        found = code_of(result.constants, result.graph)(*tensors)
    torch.testing.assert_close(found, result.results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda f: f.__name__)
def test_formula_without_a_gradient_is_found_as_well(formula):
    formulas._traced.cache_clear()
    with torch.inference_mode():
        result = trace(lambda x: [formula(x)], [torch.randn(7)])
        recognize_activations_(result.graph)
    assert len(operators_of(result.graph)) == 1


@pytest.mark.parametrize(
    ("function", "dtype"),
    [(of_other_constants, torch.float64), (of_two_inputs, torch.float64), (gelu_of_gpt, torch.bfloat16)],
    ids=["other constants", "of two inputs", "rounded in between"],
)
def test_what_would_be_other_numbers_stays_as_it_is(function, dtype):
    result, _ = traced(function, dtype)
    before = operators_of(result.graph)
    recognize_activations_(result.graph)
    assert operators_of(result.graph) == before


def test_parts_of_a_formula_that_others_read_are_still_computed():
    def function(x):
        tanh = torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))
        return 0.5 * x * (1.0 + tanh) + tanh

    result, tensors = traced(function)
    recognize_activations_(result.graph)
    with torch.no_grad():
        found = code_of(result.constants, result.graph)(*tensors)
    torch.testing.assert_close(found, result.results, rtol=1e-9, atol=1e-9)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(gelu_of_gpt(hidden) + swish(hidden))


def test_sweep_of_a_model_with_formulas_trains_as_a_plain_loop_does():
    torch.manual_seed(0)
    model = Block().double()
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(5)]
    task = vs.Task(model, batches, F.cross_entropy, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
    runs = vs.sweep(task, lrs=[1e-3, 1e-2], num_steps=40, engine="vectorized", compile=False)
    stock.assert_equal(runs, task, 40)
