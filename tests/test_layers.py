"""Every kind of layer, against an ordinary loop with torch.optim."""

import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs

pytestmark = pytest.mark.usefixtures("float64", "device")

NUM_STEPS = 12
LRS = [0.002, 0.01, 0.03]


class Lambda(nn.Module):
    """A function between layers."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    """Attention by torch's function, with options."""

    def __init__(self, mask=None, **options):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.mask, self.options = mask, options

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        mask = None if self.mask is None else self.mask(x)
        return F.scaled_dot_product_attention(q, k, v, mask, **self.options).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention with a key padding mask, with or without its weights."""

    def __init__(self, *, need_weights, dropout=0.0):
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)

    def forward(self, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        padding[:, -2:] = True
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=self.need_weights)[0]


class Tied(nn.Module):
    """An embedding whose weights are those of the output layer, too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, x):
        return self.output(self.embedding(x).mean(1))


class Cell(nn.Module):
    """A recurrent cell, stepped by hand."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


class EmaBuffer(nn.Module):
    """A buffer that the forward pass replaces rather than changes in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("center", torch.zeros(8))

    def forward(self, x):
        y = self.linear(x)
        self.center = 0.9 * self.center + 0.1 * y.detach().flatten(0, -2).mean(0)
        return torch.tanh(y - self.center)


def head(features, outputs=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, outputs))


def flat(*layers, features=8):
    return nn.Sequential(*layers, head(features))


def image(*layers, features):
    return nn.Sequential(*layers, nn.Tanh(), head(features))


def recurrent(cls, *, features=6, **options):
    return flat(cls(8, 6, batch_first=True, **options), Lambda(lambda y: y[0][:, -1]), features=features)


def causal_bool(x):
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()


VECTOR, SEQUENCE, IMAGE, VOLUME, TOKENS = (4, 8), (4, 5, 8), (4, 2, 6, 6), (3, 2, 4, 4, 4), (4, 6)

# name: (a function that builds the model, the shape of its inputs)
LAYERS = {
    "linear": (lambda: flat(nn.Linear(8, 8), nn.Tanh()), VECTOR),
    "linear-no-bias": (lambda: flat(nn.Linear(8, 8, bias=False), nn.Tanh()), VECTOR),
    "linear-complex": (
        lambda: flat(
            Lambda(lambda x: torch.complex(x, x.sin())),
            nn.Linear(8, 40, dtype=torch.get_default_dtype().to_complex()),
            Lambda(lambda x: torch.complex(x.real.tanh(), x.imag)),
            nn.Linear(40, 8, dtype=torch.get_default_dtype().to_complex()),
            Lambda(torch.abs),
        ),
        VECTOR,
    ),
    "bilinear": (lambda: flat(Lambda(lambda x: (x, x)), Pair(nn.Bilinear(8, 8, 8)), nn.Tanh()), VECTOR),
    "conv1d": (lambda: flat(nn.Conv1d(5, 4, 3), nn.Tanh(), features=24), SEQUENCE),
    "conv2d": (lambda: image(nn.Conv2d(2, 4, 3, padding=1), features=144), IMAGE),
    "conv2d-stack": (
        lambda: image(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 3, 2, bias=False), features=3),
        IMAGE,
    ),
    "conv2d-viewed": (
        lambda: flat(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), Lambda(lambda x: x.view(-1, 16)), features=16),
        IMAGE,
    ),
    "conv2d-viewed-as-another": (
        lambda: flat(nn.Conv2d(2, 4, 3), Lambda(lambda x: x.view_as(x.new_empty(len(x), 64))), features=64),
        IMAGE,
    ),
    "conv2d-strided-dilated": (lambda: image(nn.Conv2d(2, 4, 2, stride=2, dilation=2), features=16), IMAGE),
    "conv2d-depthwise": (lambda: image(nn.Conv2d(2, 4, 3, groups=2), features=64), IMAGE),
    "conv2d-same-in-strings": (lambda: image(nn.Conv2d(2, 3, 3, padding="same", bias=False), features=108), IMAGE),
    "conv2d-grouped-stack": (
        lambda: image(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), features=16),
        IMAGE,
    ),
    "conv2d-frozen-after-trained": (
        lambda: image(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3).requires_grad_(False), features=12),
        IMAGE,
    ),
    "linear-frozen-after-trained": (
        lambda: flat(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8).requires_grad_(False), nn.Tanh()),
        VECTOR,
    ),
    "conv2d-reflect": (lambda: image(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), features=108), IMAGE),
    "conv3d": (lambda: image(nn.Conv3d(2, 3, 2), features=81), VOLUME),
    "conv-transposed-1d": (lambda: flat(nn.ConvTranspose1d(5, 4, 3, stride=2), nn.Tanh(), features=68), SEQUENCE),
    "conv-transposed-2d": (
        lambda: image(nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), features=588),
        IMAGE,
    ),
    "conv-transposed-3d": (lambda: image(nn.ConvTranspose3d(2, 2, 2), features=250), VOLUME),
    "max-pool": (lambda: image(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), features=16), IMAGE),
    "adaptive-pool": (lambda: image(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(2), features=16), IMAGE),
    "batch-norm-1d": (lambda: flat(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()), VECTOR),
    "batch-norm-2d": (lambda: image(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), features=64), IMAGE),
    "batch-norm-cumulative": (lambda: flat(nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=None), nn.Tanh()), VECTOR),
    "batch-norm-untracked": (
        lambda: flat(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Tanh()),
        VECTOR,
    ),
    "batch-norm-of-inputs": (lambda: flat(nn.BatchNorm1d(8, affine=False), nn.Linear(8, 8), nn.Tanh()), VECTOR),
    "group-norm": (lambda: image(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), features=64), IMAGE),
    "layer-norm": (lambda: flat(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh()), VECTOR),
    "rms-norm": (lambda: flat(nn.Linear(8, 8), nn.RMSNorm(8), nn.Tanh()), VECTOR),
    "instance-norm": (
        lambda: image(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), features=64),
        IMAGE,
    ),
    "local-response-norm": (lambda: image(nn.Conv2d(2, 4, 3), nn.LocalResponseNorm(2), features=64), IMAGE),
    "embedding": (lambda: flat(nn.Embedding(11, 4, padding_idx=0), nn.Tanh(), features=24), TOKENS),
    "embedding-bag": (lambda: flat(nn.EmbeddingBag(11, 8), nn.Tanh()), TOKENS),
    "tied-embedding": (lambda: Tied(), TOKENS),
    "attention": (lambda: flat(Attention(), features=40), SEQUENCE),
    "attention-causal": (lambda: flat(Attention(is_causal=True), features=40), SEQUENCE),
    "attention-bool-mask": (lambda: flat(Attention(mask=causal_bool), features=40), SEQUENCE),
    "attention-mask-of-inputs": (
        lambda: flat(Attention(mask=lambda x: (x.sum(-1) * 0.1)[:, None, None, :]), features=40),
        SEQUENCE,
    ),
    "attention-dropout": (lambda: flat(Attention(dropout_p=0.3), features=40), SEQUENCE),
    "attention-dropout-causal": (lambda: flat(Attention(dropout_p=0.3, is_causal=True), features=40), SEQUENCE),
    "attention-dropout-of-a-masked-row": (
        lambda: flat(Attention(mask=lambda x: causal_bool(x).tril(-1), dropout_p=0.3), features=40),
        SEQUENCE,
    ),
    "multihead": (lambda: flat(SelfAttention(need_weights=True), features=40), SEQUENCE),
    "multihead-without-weights": (lambda: flat(SelfAttention(need_weights=False), features=40), SEQUENCE),
    "multihead-dropout": (lambda: flat(SelfAttention(need_weights=False, dropout=0.2), features=40), SEQUENCE),
    "transformer-encoder": (
        lambda: flat(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), features=40),
        SEQUENCE,
    ),
    "transformer-decoder": (
        lambda: flat(
            Lambda(lambda x: (x, x)), Pair(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)), features=40
        ),
        SEQUENCE,
    ),
    "dropout": (lambda: flat(nn.Linear(8, 8), nn.Dropout(0.4), nn.Tanh()), VECTOR),
    "dropout-of-inputs": (lambda: flat(nn.Dropout(0.4), nn.Linear(8, 8), nn.Tanh()), VECTOR),
    "dropout-in-place": (lambda: flat(nn.Linear(8, 8), nn.Dropout(0.4, inplace=True), nn.Tanh()), VECTOR),
    "dropout-2d": (lambda: image(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.4), features=64), IMAGE),
    "noise": (lambda: flat(Lambda(lambda x: x + 0.1 * torch.randn_like(x)), nn.Linear(8, 8), nn.Tanh()), VECTOR),
    "gumbel-softmax": (lambda: flat(nn.Linear(8, 8), Lambda(F.gumbel_softmax)), VECTOR),
    "weight-norm": (lambda: flat(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh()), VECTOR),
    "spectral-norm": (lambda: flat(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Tanh()), VECTOR),
    "spectral-norm-by-hook": (lambda: flat(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.Tanh()), VECTOR),
    "lstm": (lambda: recurrent(nn.LSTM), SEQUENCE),
    "lstm-deep-dropout": (lambda: recurrent(nn.LSTM, num_layers=2, dropout=0.3), SEQUENCE),
    "lstm-bidirectional": (lambda: recurrent(nn.LSTM, num_layers=2, bidirectional=True, features=12), SEQUENCE),
    "lstm-projected": (lambda: recurrent(nn.LSTM, proj_size=3, features=3), SEQUENCE),
    "lstm-unbatched": (
        lambda: nn.Sequential(nn.LSTM(8, 6), Lambda(lambda y: y[0]), nn.Linear(6, 3)),
        VECTOR,
    ),
    "gru": (lambda: recurrent(nn.GRU, num_layers=2, bias=False), SEQUENCE),
    "rnn-tanh": (lambda: recurrent(nn.RNN), SEQUENCE),
    "rnn-relu": (lambda: recurrent(nn.RNN, nonlinearity="relu"), SEQUENCE),
    "lstm-cell": (lambda: flat(Cell(nn.LSTMCell(8, 6)), features=6), SEQUENCE),
    "gru-cell": (lambda: flat(Cell(nn.GRUCell(8, 6)), features=6), SEQUENCE),
    "rnn-cell": (lambda: flat(Cell(nn.RNNCell(8, 6, nonlinearity="relu")), features=6), SEQUENCE),
    "activations": (
        lambda: flat(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.PReLU(), nn.Softplus()),
        VECTOR,
    ),
    "in-place-activation": (lambda: flat(nn.Linear(8, 8), nn.SELU(inplace=True)), VECTOR),
    "replaced-buffer": (lambda: flat(EmaBuffer()), VECTOR),
}


# BatchNorm with momentum=None divides by a Python number that it takes out of its counter.
NOT_TRACED = {"batch-norm-cumulative"}


class Pair(nn.Module):
    """Call a module with a pair as its two arguments."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, pair):
        return self.module(*pair)


def layer_task(build, shape):
    torch.manual_seed(0)
    model = build()
    is_tokens = shape == TOKENS
    inputs = [torch.randint(11, shape) if is_tokens else torch.randn(shape) for _ in range(4)]
    batches = [(x, torch.randint(3, shape[:1])) for x in inputs]
    return vs.Task(
        model,
        batches,
        F.cross_entropy,
        optimizer=lambda params: torch.optim.SGD([p for p in params if p.requires_grad], lr=0.1, momentum=0.9),
    )


# Three members in chunks of two are a chunk of two and one of one; all in one chunk are tried with layers of each kind.
CHUNKS = [(layer, 2) for layer in LAYERS]
CHUNKS += [(layer, "auto") for layer in ("linear", "conv2d-stack", "batch-norm-2d", "embedding", "transformer-encoder")]
CHUNKS += [(layer, "auto") for layer in ("attention-dropout-causal", "weight-norm", "lstm-deep-dropout", "gru-cell")]


@pytest.mark.parametrize(("layer", "chunk_size"), CHUNKS)
def test_layer_trains_in_one_pass_as_in_an_ordinary_loop(layer, chunk_size):
    task = layer_task(*LAYERS[layer])
    how = {"engine": "vectorized", "chunk_size": chunk_size, "divergence_factor": None}
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, **how)
    level = "eager" if layer in NOT_TRACED else "traced"
    assert runs.engine.startswith(f"vectorized, {level}"), runs.engine
    stock.assert_equal(runs, task, NUM_STEPS)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_trains_member_by_member_as_in_an_ordinary_loop(layer):
    task = layer_task(*LAYERS[layer])
    runs = vs.sweep(task, lrs=LRS[:2], num_steps=NUM_STEPS, engine="sequential", divergence_factor=None)
    stock.assert_equal(runs, task, NUM_STEPS)


def test_weight_norm_that_keeps_a_computed_weight_is_copied_and_trained():
    def build():
        torch.manual_seed(0)
        with pytest.warns(FutureWarning):
            return flat(nn.utils.weight_norm(nn.Linear(8, 8)), nn.Tanh())

    batches = [(torch.randn(4, 8), torch.randint(3, (4,))) for _ in range(3)]
    task = vs.Task(build(), batches, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    for engine in ("vectorized", "sequential"):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine=engine)
        assert runs.engine.startswith(engine)
        for i, lr in enumerate(LRS):  # torch cannot copy this model, so the oracle builds its own
            expected = stock.train_in_place(build(), task, lr, NUM_STEPS)
            torch.testing.assert_close(
                torch.tensor(runs.train_loss[:, i]), torch.tensor(expected.losses), rtol=1e-9, atol=0
            )
