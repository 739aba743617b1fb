"""The models of the built-in tasks; each function builds one, whose weights are drawn anew."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Build linear layers between these widths, with ReLU between them."""
    layers: list[nn.Module] = []
    for width, wider in pairwise(widths):
        layers += [nn.ReLU(), nn.Linear(width, wider)]
    return nn.Sequential(*layers[1:])


def digits_cnn_model() -> nn.Sequential:
    """Build convolutions of 16 and 32 channels for images of 8x8, and a linear layer."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def vgg() -> nn.Sequential:
    """Build six convolutions, with pools after the first, third and sixth, and two linear layers; none has a bias.

    Weights are normal, with variance 2 / fan-in where a ReLU follows. By PyTorch's own, a sixth of that, each layer
    shrinks what it passes on, and with no bias to start from an lr of 0.01 learned nothing in the first 130 steps.

    Reference:
        Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556, whose style it is, made small;
        He, Zhang, Ren and Sun 2015, https://arxiv.org/abs/1502.01852, for the weights.
    """
    layers: list[nn.Module] = []
    width = 3
    for i, wider in enumerate((32, 64, 64, 128, 128, 128), 1):
        layers += [nn.Conv2d(width, wider, 3, padding=1, bias=False), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3, 6) else []
        width = wider
    head = (nn.Flatten(), nn.Linear(2048, 128, bias=False), nn.ReLU(), nn.Linear(128, 10, bias=False))
    model = nn.Sequential(*layers, *head)
    for layer in list(model)[:-1]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


def tanh_net(num_features: int, width: int) -> nn.Sequential:
    """Build two layers of tanh, with batch norm before it, and a linear output."""
    return nn.Sequential(
        *(nn.Linear(num_features, width, bias=False), nn.BatchNorm1d(width), nn.Tanh()),
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.Tanh()),
        nn.Linear(width, 1),
    )


class CharGPT(nn.Module):
    """A decoder of two layers on characters: width 64, four heads, norms before each part.

    Args:
        num_symbols: of the alphabet.
        length: positions at most.
        width: of the residual stream.

    Reference:
        Radford et al. 2019, Language models are unsupervised multitask learners, whose design it is, made small.
    """

    def __init__(self, num_symbols: int, length: int, width: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(num_symbols, width), nn.Embedding(length, width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)  # by PyTorch's 1.0 the sum would drown what blocks add to it
        self.blocks = nn.Sequential(_Block(width), _Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_symbols, bias=False)

    def forward(self, symbols: Tensor) -> Tensor:
        """From `[batch, position]` to logits `[batch, symbol, position]`, as cross-entropy takes them."""
        indices = torch.arange(symbols.shape[1], device=symbols.device)
        stream: Tensor = self.blocks(self.tokens(symbols) + self.positions(indices))
        logits: Tensor = self.head(self.norm(stream))
        return logits.transpose(1, 2)


class _Block(nn.Module):
    """Causal self-attention and a feed-forward layer."""

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.num_heads = num_heads

    def forward(self, stream: Tensor) -> Tensor:
        """From and to `[batch, position, width]`."""
        parts = self.qkv(self.norm1(stream)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream = stream + self.out(seen.transpose(1, 2).flatten(2))
        return stream + self.feed(self.norm2(stream))
