"""Samples of distributions that numbers in tensors give: noise that is drawn before the step, and what comes of it.

What ATen draws for most of them does not depend on the numbers: a uniform number is below p or not, a normal one is
scaled and moved, and of several outcomes the one that an exponential clock with its rate reaches first is taken. Each
member's own numbers make a sample of the noise that members have in common, as of a generator that stands alike.

Where the kernel draws as many numbers as its argument says (gamma, Dirichlet, Poisson, binomial), and in kernels of a
GPU that deal out their noise otherwise, the sample itself is drawn before the step, if its distribution is always the
same.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .draw import Draw

Sampled = tuple[Tensor, Tensor | None]  # the sample, and whether the numbers it is of are good


class _Sampler(NamedTuple):
    """How a function samples.

    Attributes:
        noise: what it draws, from its arguments; None where they are no tensors, or the kernel is another.
        sample: what it returns, from the noise and its arguments.
    """

    noise: Callable[..., Draw | None]
    sample: Callable[..., Sampled]


def find_noise(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Draw | None:
    """Say what a call draws before the step; None where it samples nothing that is known."""
    if (own := _known(func, kwargs)) is None:
        return None
    if func in SAMPLERS and (noise := SAMPLERS[func].noise(*args, **own)) is not None:
        return noise
    if func in _WHOLE and not own:
        return Draw(func, args, own)
    return None


def sample(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], drawn: Tensor) -> Sampled | None:
    """Compute a call from what was drawn for it; None where that is the sample."""
    own = _known(func, kwargs)
    if own is None or func not in SAMPLERS or SAMPLERS[func].noise(*args, **own) is None:
        return None
    return SAMPLERS[func].sample(drawn, *args, **own)


def _known(func: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of a function that samples by the global generator; None of any other."""
    if func not in SAMPLERS and func not in _WHOLE:
        return None
    own = {name: value for name, value in kwargs.items() if value is not None}
    return None if own.keys() & {"generator", "out"} else own


def _noise(
    function: Callable[..., Tensor],
    args: tuple[Any, ...],
    shape: Sequence[int],
    like: Tensor,
    dtype: torch.dtype | None = None,
) -> Draw:
    """A draw into a new tensor of this shape."""
    start = torch.empty(tuple(shape), dtype=dtype or like.dtype, device="meta")
    return Draw(function, args, {}, start, like.device)


def _bernoulli_noise(input: Tensor, p: float | None = None) -> Draw | None:
    if p is not None:
        return _noise(Tensor.bernoulli_, (p,), input.shape, input)
    return _noise(Tensor.uniform_, (), input.shape, input, _compared_in(input)) if input.device.type == "cpu" else None


def _bernoulli(noise: Tensor, input: Tensor, p: float | None = None) -> Sampled:
    if p is not None:
        return noise.clone(), None
    return (noise < input.detach()).to(input.dtype), _is_probability(input)


def _bernoulli_in_place_noise(self: Tensor, p: Tensor | float = 0.5) -> Draw | None:
    if not isinstance(p, Tensor) or p.device.type != "cpu":
        return None
    # As it lies, because numbers are drawn in the order of its memory.
    start = torch.empty_like(self, dtype=_compared_in(p), device="meta")
    return Draw(Tensor.uniform_, (), {}, start, p.device)


def _bernoulli_in_place(noise: Tensor, self: Tensor, p: Tensor) -> Sampled:
    return self.copy_(noise < p.detach()), _is_probability(p)


def _compared_in(p: Tensor) -> torch.dtype:
    """The type of the numbers that a CPU compares with probabilities."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def _is_probability(p: Tensor) -> Tensor:
    return ((p >= 0) & (p <= 1)).all()


def _multinomial_noise(input: Tensor, num_samples: int, replacement: bool = False) -> Draw | None:
    if num_samples == 1 or not replacement:
        return Draw.like(Tensor.exponential_, input, (), {})
    if input.device.type != "cpu" or input.dtype not in (torch.float32, torch.float64):
        return None
    return _noise(Tensor.uniform_, (), (*input.shape[:-1], num_samples), input, torch.float64)


def _multinomial(noise: Tensor, input: Tensor, num_samples: int, replacement: bool = False) -> Sampled:
    p = input.detach()
    is_good = ((p >= 0) & (p < torch.inf)).all() & (p.sum(-1) > 0).all()
    if num_samples == 1:
        return (p / noise).argmax(-1, keepdim=True), is_good
    if not replacement:
        return (p / noise).topk(num_samples).indices, is_good
    reached = p.cumsum(-1)
    reached = (reached / reached[..., -1:])[..., :-1]  # the last is 1
    return (reached.unsqueeze(-2) < noise.unsqueeze(-1)).sum(-1), is_good


def _normal_noise(mean: Tensor | float = 0.0, std: Tensor | float = 1.0, *_: Any, **__: Any) -> Draw | None:
    given = [x for x in (mean, std) if isinstance(x, Tensor)]
    if not given:
        return None
    shape = torch.broadcast_shapes(*(x.shape for x in given))
    scale = 1.0 if isinstance(std, Tensor) else std
    return _noise(Tensor.normal_, (0.0, scale), shape, given[0])


def _normal(noise: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> Sampled:
    is_good = None
    if isinstance(std, Tensor):
        noise, is_good = noise * std.detach(), (std >= 0).all()
    return noise + (mean.detach() if isinstance(mean, Tensor) else mean), is_good


_OF_P, _OF_OUTCOMES = _Sampler(_bernoulli_noise, _bernoulli), _Sampler(_multinomial_noise, _multinomial)

SAMPLERS: dict[Callable[..., Any], _Sampler] = {
    Tensor.bernoulli: _OF_P,
    Tensor.bernoulli_: _Sampler(_bernoulli_in_place_noise, _bernoulli_in_place),
    Tensor.multinomial: _OF_OUTCOMES,
    torch.bernoulli: _OF_P,
    torch.multinomial: _OF_OUTCOMES,
    torch.normal: _Sampler(_normal_noise, _normal),
}

# What is drawn as it is, if its distribution is always the same.
_WHOLE = frozenset[Callable[..., Any]](
    {
        Tensor.bernoulli,
        Tensor.multinomial,
        torch._sample_dirichlet,
        torch._standard_gamma,
        torch.bernoulli,
        torch.binomial,
        torch.multinomial,
        torch.poisson,
    }
)
