"""Adapters over quantized bases against plain loops: those of torchao and bitsandbytes, and small ones like them."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

import vecsweep as vs
from vecsweep.integrations.peft import make_task, save_adapter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the peers' own imports warn of
    import peft
    import transformers

transformers.logging.set_verbosity_error()

# PEFT asks for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

LRS = [1e-3, 1e-2, 3e-2]
WIDTH, VOCABULARY = 32, 40


def quantized(weight):
    """Rows of eight bits, and the scale of each."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class Wrapped(torch.Tensor):
    """A weight as torchao has them: a wrapper of others, with a product above autograd, and next to nothing else."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype, device=data.device)

    def __init__(self, data, scale):
        self.packed, self.scale = data, scale

    def __tensor_flatten__(self):
        return ["packed", "scale"], None

    @staticmethod
    def __tensor_unflatten__(parts, meta, size, stride):
        return Wrapped(parts["packed"], parts["scale"])

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = (*args, None)[:3]
            with torch._C.DisableTorchFunctionSubclass():
                product = x @ weight.packed.to(x.dtype).t() * weight.scale.flatten()
            return product if bias is None else product + bias
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(func(args[0].packed), func(args[0].scale))
        raise NotImplementedError(f"{func} of quantized weights")

    def __deepcopy__(self, memo):
        return nn.Parameter(self.detach().clone(), requires_grad=False)


class Carrying(nn.Parameter):
    """A weight as bitsandbytes has them: the numbers, and in attributes what it takes to read them."""

    def __new__(cls, data, scale):
        made = torch.Tensor._make_subclass(cls, data, False)
        made.scale = scale
        return made

    def __deepcopy__(self, memo):
        return Carrying(self.data.clone(), self.scale.clone())


class ReadProduct(Function):
    """It says nothing of vmap."""

    @staticmethod
    def forward(ctx, x, data, scale):
        ctx.save_for_backward(data, scale)
        return x @ (data.to(x.dtype) * scale).t()

    @staticmethod
    def backward(ctx, grad):
        data, scale = ctx.saved_tensors
        return grad @ (data.to(grad.dtype) * scale), None, None


class CarryingLinear(nn.Linear):
    def forward(self, x):
        return ReadProduct.apply(x, self.weight, self.weight.scale)


class Adapted(nn.Module):
    """A LoRA over a quantized base."""

    def __init__(self, kind):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH).requires_grad_(False)
        self.base = nn.ModuleList(kind(WIDTH, WIDTH, bias=False).requires_grad_(False) for _ in range(2))
        for layer in self.base:
            layer.weight = Carrying(*quantized(layer.weight.detach())) if kind is CarryingLinear else layer.weight
            if kind is nn.Linear:
                layer.weight = nn.Parameter(Wrapped(*quantized(layer.weight.detach())), requires_grad=False)
        self.down = nn.ModuleList(nn.Linear(WIDTH, 4, bias=False) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(4, WIDTH, bias=False) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY).requires_grad_(False)

    def forward(self, ids):
        hidden = self.embedding(ids)
        for base, down, up in zip(self.base, self.down, self.up, strict=True):
            hidden = torch.tanh(base(hidden) + up(down(hidden)))
        return self.head(hidden)


def make_small_task(model, **options):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (4, 2, 7), generator=generator)
    made = model if isinstance(model, nn.Module) else model()
    trained = [p for p in made.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1) if made is model else lambda own: torch.optim.AdamW(own, lr=0.1)
    step = lambda model, batch: F.cross_entropy(model(batch).flatten(0, 1), batch.flatten())  # noqa: E731
    return vs.Task(model, list(ids), training_step=step, optimizer=optimizer, **options)


def train_alone(model, loss_of, batches, lr, num_steps, weight_decay):
    """A loop as people write it, on a copy."""
    model, losses = copy.deepcopy(model), []
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    for t in range(num_steps):
        optimizer.zero_grad()
        loss = loss_of(model, batches[t % len(batches)])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def places_of(model):
    """Where the quantized weights of a model are, and those that others wrap."""
    special = [p for p in model.parameters() if type(p) is not nn.Parameter]
    assert special
    wrapped = [getattr(p, name) for p in special for name in ("packed", "qdata") if hasattr(p, name)]
    return [p.data_ptr() for p in wrapped or special]


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("kind", [nn.Linear, CarryingLinear], ids=["wrapped", "carrying"])
@pytest.mark.usefixtures("float64")
def test_adapters_of_weights_of_a_class_of_their_own_train_as_plain_loops_do(kind, engine):
    torch.manual_seed(0)
    model = Adapted(kind)
    task, places = make_small_task(model, val_batches=make_small_task(model).batches), places_of(model)
    runs = vs.sweep(task, lrs=LRS, num_steps=6, seeds=2, engine=engine, compile=False)
    assert runs.engine.startswith("vectorized, traced" if engine == "vectorized" else "sequential")
    for lr in LRS:
        losses, trained = train_alone(model, task.training_step, task.batches, lr, 6, 0.01)
        own = runs.select(lr=lr, seed=0)
        np.testing.assert_allclose(own.train_loss[:, 0], losses, rtol=1e-9)
        validated = np.mean([task.training_step(trained, batch).item() for batch in task.val_batches])
        np.testing.assert_allclose(own.metrics["val_loss"][-1, 0], validated, rtol=1e-9)
    sharing = runs.model(0)
    assert [type(layer.weight) for layer in sharing.base] == [type(layer.weight) for layer in model.base]
    assert places_of(sharing) == places_of(model) == places
    with torch.no_grad():
        assert torch.equal(sharing(task.batches[0]), runs.model(0)(task.batches[0]))


def test_quantized_weights_that_each_seed_has_for_itself_are_told_of():
    task = make_small_task(lambda: Adapted(CarryingLinear))
    with pytest.warns(vs.FallbackWarning, match=r"the model of each seed has quantized weights of its own"):
        vs.sweep(task, lrs=LRS[:2], num_steps=3, seeds=2, engine="vectorized")


def make_llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=24,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def of_torchao(base, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
        configs = {
            "int8": quantization.Int8WeightOnlyConfig,
            "int4": lambda: quantization.IntxWeightOnlyConfig(
                weight_dtype=torch.int4, granularity=quantization.PerGroup(WIDTH)
            ),
        }
        quantization.quantize_(base.model, configs[name]())
    return base


def of_bitsandbytes(base, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bnb = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    for module in list(base.model.modules()):
        for key, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear):
                shape, weight = (layer.in_features, layer.out_features), layer.weight.data
                if name == "4bit":
                    own = bnb.nn.Linear4bit(*shape, bias=False, quant_type="nf4", compute_dtype=torch.float32)
                    own.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
                else:
                    own = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
                    own.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
                setattr(module, key, own.to("cpu"))
    base.is_loaded_in_4bit, base.is_loaded_in_8bit = name == "4bit", name == "8bit"
    return base


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*:FutureWarning", "ignore:MatMul8bitLt", "ignore:TorchaoLora"
)
@pytest.mark.parametrize(
    ("library", "name", "obstacle"),
    [
        (of_torchao, "int8", None),
        (of_torchao, "int4", None),
        (of_bitsandbytes, "4bit", None),
        (of_bitsandbytes, "8bit", r"the forward pass keeps something for the next in the attribute `.*\.state\.CB`"),
    ],
)
def test_adapters_of_a_quantized_base_train_as_separate_runs_of_peft_do(library, name, obstacle, tmp_path):
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(library(make_llama(), name), lora).train()
    generator = torch.Generator().manual_seed(1)
    batches = [{"input_ids": i, "labels": i} for i in torch.randint(VOCABULARY, (4, 2, 7), generator=generator)]
    places, how = places_of(model), {"lrs": LRS, "num_steps": 6, "engine": "vectorized", "divergence_factor": None}
    if obstacle is None:
        runs = vs.sweep(make_task(model, batches), **how)
        assert runs.engine.startswith("vectorized, traced")
    else:
        with pytest.warns(vs.FallbackWarning, match=obstacle):
            runs = vs.sweep(make_task(model, batches), **how)
    for i, lr in enumerate(LRS):
        losses, _ = train_alone(model, lambda model, batch: model(**batch).loss, batches, lr, 6, 0.0)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-5)
    assert places_of(model) == places
    loaded = peft.PeftModel.from_pretrained(library(make_llama(), name), save_adapter(runs, 1, tmp_path))
    with torch.no_grad():
        # In training mode, without dropout: bitsandbytes packs weights anew in the other, and rounds them to bfloat16.
        assert torch.equal(loaded.train()(**batches[0]).logits, runs.model(1).train()(**batches[0]).logits)
