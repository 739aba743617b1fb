"""Models as people bring them, by name: each a function that returns a task.

Most are architectures of transformers in small configurations with random weights, a few are written out. Data are
random, because only their shapes matter.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vecsweep as vs

NUM_BATCHES = 10


def _adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)


def _momentum(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def _own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def _reads(model: nn.Module, make_batch: Callable[[], dict[str, Tensor]], optimizer: Any = _adamw) -> vs.Task:
    """A task of a model of transformers, which computes its own loss."""
    return vs.Task(
        model.train(), [make_batch() for _ in range(NUM_BATCHES)], training_step=_own_loss, optimizer=optimizer
    )


def _tokens(length: int, num_symbols: int = 1000, batch_size: int = 8) -> dict[str, Tensor]:
    ids = torch.randint(num_symbols, (batch_size, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def _images(size: int, batch_size: int = 8) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch_size, 3, size, size), "labels": torch.randint(10, (batch_size,))}


def bert() -> vs.Task:
    """BERT, two layers of 128, classifying sequences of 64 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        num_labels=2,
    )
    return _reads(BertForSequenceClassification(config), lambda: _tokens(64) | {"labels": torch.randint(2, (8,))})


def gpt2() -> vs.Task:
    """GPT-2, two layers of 128, with its dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _reads(
        GPT2LMHeadModel(GPT2Config(vocab_size=1000, n_embd=128, n_layer=2, n_head=4, n_positions=64)),
        lambda: _tokens(64),
    )


def _llama_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=344,
    )
    return LlamaForCausalLM(config)


def llama() -> vs.Task:
    """Llama, two layers of 128."""
    return _reads(_llama_model(), lambda: _tokens(64))


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained product of rank 8 beside it (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: int = 16) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own output, and the adapter's."""
        return self.base(x) + F.linear(F.linear(x, self.a), self.b) * self.scale


def lora_llama() -> vs.Task:
    """Adapters of rank 8 on the queries and values of a Llama of four layers of 256."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=688,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj = LoRALinear(layer.self_attn.q_proj)
        layer.self_attn.v_proj = LoRALinear(layer.self_attn.v_proj)
    return _reads(model, lambda: _tokens(64), lambda params: _adamw([p for p in params if p.requires_grad]))


def t5() -> vs.Task:
    """T5, two layers of 128 on each side."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=1000,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return _reads(T5ForConditionalGeneration(config), lambda: _tokens(32))


def mamba() -> vs.Task:
    """Mamba, two layers of 64, with its scan in plain PyTorch."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=500, hidden_size=64, num_hidden_layers=2, state_size=8)
    return _reads(
        MambaForCausalLM(config), lambda: {k: v for k, v in _tokens(32, 500).items() if k != "attention_mask"}
    )


def vit() -> vs.Task:
    """ViT, two layers of 128, on images of 32x32 in patches of 4."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=32,
        patch_size=4,
        num_labels=10,
    )
    return _reads(ViTForImageClassification(config), lambda: _images(32))


def swin() -> vs.Task:
    """Swin, two stages of two blocks, from 48 channels on."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=48, depths=[2, 2], num_heads=[3, 6], window_size=4, num_labels=10
    )
    return _reads(SwinForImageClassification(config), lambda: _images(32))


def resnet18() -> vs.Task:
    """ResNet-18, 11 M parameters, on images of 32x32; SGD with momentum."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=10,
    )
    return _reads(ResNetForImageClassification(config), lambda: _images(32, 16), _momentum)


def efficientnet() -> vs.Task:
    """EfficientNet with a fifth of the width of B0, on images of 32x32; SGD with momentum."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=32, width_coefficient=0.2, depth_coefficient=0.5, hidden_dim=256, num_labels=10
    )
    return _reads(EfficientNetForImageClassification(config), lambda: _images(32), _momentum)


def convnext() -> vs.Task:
    """ConvNeXt, two stages of two blocks, from 32 channels on."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        image_size=32, patch_size=2, num_stages=2, hidden_sizes=[32, 64], depths=[2, 2], num_labels=10
    )
    return _reads(ConvNextForImageClassification(config), lambda: _images(32))


class VAE(nn.Module):
    """A variational autoencoder of images of 28x28 (Kingma and Welling 2013, arXiv:1312.6114)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 2 * 16))
        self.decoder = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 784))

    def loss(self, x: Tensor) -> Tensor:
        """The negative evidence lower bound of images `[batch, 784]` in [0, 1]."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1).mean() + divergence


def vae() -> vs.Task:
    """A variational autoencoder 784-256-16."""
    batches = [torch.rand(64, 784) for _ in range(NUM_BATCHES)]
    return vs.Task(VAE(), batches, training_step=lambda model, x: model.loss(x), optimizer=_adamw)


class UNet(nn.Module):
    """Two levels down and up with a skip between them (Ronneberger et al. 2015, arXiv:1505.04597)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(3, width), self._block(width, 2 * width)
        self.middle = self._block(2 * width, 4 * width)
        self.up2, self.up1 = self._block(6 * width, 2 * width), self._block(3 * width, width)
        self.head = nn.Conv2d(width, 3, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """From images `[batch, 3, height, width]` to images of the same shape."""
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([F.interpolate(c, scale_factor=2), b], dim=1))
        a = self.up1(torch.cat([F.interpolate(b, scale_factor=2), a], dim=1))
        return self.head(a)


def unet() -> vs.Task:
    """A U-Net from 16 channels on, on images of 32x32."""
    batches = [(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)) for _ in range(NUM_BATCHES)]
    return vs.Task(UNet(), batches, F.mse_loss, optimizer=_adamw)


def _classify(sizes: tuple[int, ...], batch_size: int, optimizer: Any) -> vs.Task:
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    batches = [(torch.randn(batch_size, sizes[0]), torch.randint(sizes[-1], (batch_size,))) for _ in range(NUM_BATCHES)]
    return vs.Task(nn.Sequential(*layers[:-1]), batches, F.cross_entropy, optimizer=optimizer)


def mlp784_adamw() -> vs.Task:
    """An MLP 784-500-256-10 with AdamW."""
    return _classify((784, 500, 256, 10), 64, _adamw)


def mlp784_sgd() -> vs.Task:
    """An MLP 784-500-256-10 with SGD with momentum."""
    return _classify((784, 500, 256, 10), 64, _momentum)


def mlp_small() -> vs.Task:
    """An MLP 20-64-64-2 with SGD with momentum."""
    return _classify((20, 64, 64, 2), 32, _momentum)


MODELS: dict[str, Callable[[], vs.Task]] = {
    make.__name__: make
    for make in (
        bert,
        gpt2,
        llama,
        lora_llama,
        t5,
        mamba,
        vit,
        swin,
        resnet18,
        efficientnet,
        convnext,
        vae,
        unet,
        mlp784_adamw,
        mlp784_sgd,
        mlp_small,
    )
}
