"""Models of other libraries, which set themselves up at the first call."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vecsweep as vs

LRS = (0.02, 0.1)


def make_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 32, (2, 8), generator=generator) for _ in range(3)]

    def step(model, ids):
        outputs = model(input_ids=ids, labels=ids, output_hidden_states=True)
        return outputs.loss + sum(hidden.pow(2).mean() for hidden in outputs.hidden_states)

    return transformers.LlamaForCausalLM(config).double(), batches, step


def make_segformer():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=3,
    )
    for name in ("hidden_dropout_prob", "classifier_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
        setattr(config, name, 0.0)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=generator),
            torch.randint(0, 3, (2, 16, 16), generator=generator),
        )
        for _ in range(3)
    ]
    model = transformers.SegformerForSemanticSegmentation(config).double()
    return model, batches, lambda model, batch: model(pixel_values=batch[0], labels=batch[1]).loss


class FrozenDict(OrderedDict):
    """A config as diffusers has it: it can be copied, and nobody may write to it."""

    def __delitem__(self, key):
        raise RuntimeError("frozen")

    def pop(self, *args):
        raise RuntimeError("frozen")

    def setdefault(self, *args):
        raise RuntimeError("frozen")

    def update(self, *args, **kwargs):
        raise RuntimeError("frozen")


class WithFrozenConfig(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = FrozenDict(width=4)
        self.linear = nn.Linear(4, 2).double()

    def forward(self, x):
        return self.linear(x) / self.config["width"]


def make_frozen_config():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 4, dtype=torch.float64, generator=generator) for _ in range(3)]
    return WithFrozenConfig(), batches, lambda model, x: F.mse_loss(model(x), x[:, :2])


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("make", [make_llama, make_segformer, make_frozen_config])
def test_model_that_sets_itself_up_trains_as_in_a_plain_loop(make, engine):
    torch.manual_seed(0)
    model, batches, step = make()
    task = vs.Task(model, batches, training_step=step, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    runs = vs.sweep(task, lrs=LRS, num_steps=7, engine=engine, compile=False)
    assert runs.engine.startswith(engine)
    for i, lr in enumerate(LRS):
        plain, losses = copy.deepcopy(model), []
        optimizer = torch.optim.SGD(plain.parameters(), lr=lr)
        for t in range(7):
            optimizer.zero_grad()
            loss = step(plain, batches[t % 3])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-6)  # Llama's loss is computed in float32
    assert not any(module._forward_hooks for module in model.modules())
