"""Efficient batching rules: how an operator is computed for all members at once.

`MemberRules` is entered inside the function that vmap maps, and nowhere else, so that nobody else's vmap changes.
A rule has the arguments of the torch function it stands for, and `drawn`, the random tensors still to be used. It
works on what vmap shows it, one member's tensors, or goes below vmap by an `autograd.Function` with a `vmap` method.
A rule returns NotImplemented for a case that it leaves to torch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch.eager_transforms import enable_inplace_requires_grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._trace import DataDependentError, is_tracing
from . import attention, check, convolution, embedding, gradient, linear, loss, normalization, pooling, recurrent
from ._mapped import is_mapped, is_mapped_last
from ._mode import CallMode, takes_values
from .checkpoint import checkpoints_run_through
from .draw import Draw, UnforeseenDrawError
from .foreach import is_on_lists, one_by_one
from .function import functions_for_each
from .gradient import SharedInputsError
from .new import MAKERS, is_shared_write, of_each
from .random import find_draw, replay

__all__ = [
    "Draw",
    "MemberRules",
    "OpenDraws",
    "Recorder",
    "SharedInputsError",
    "UnforeseenDrawError",
    "checkpoints_run_through",
    "functions_for_each",
    "is_shared_write",
]

RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear.linear,
    torch.addmm: linear.addmm,
    F.cross_entropy: loss.cross_entropy,
    torch.conv1d: convolution.conv1d,
    torch.conv2d: convolution.conv2d,
    torch.conv3d: convolution.conv3d,
    F.scaled_dot_product_attention: attention.scaled_dot_product_attention,
    torch.embedding: embedding.embedding,
    F.one_hot: embedding.one_hot,
    torch.batch_norm: normalization.batch_norm,
    torch.group_norm: normalization.group_norm,
    torch.instance_norm: normalization.instance_norm,
    torch.layer_norm: normalization.layer_norm,
    torch._weight_norm: normalization.weight_norm,
    torch.relu: pooling.relu,
    F.max_pool2d: pooling.max_pool2d,
    torch.lstm: recurrent.lstm,
    torch.gru: recurrent.gru,
    torch.rnn_tanh: recurrent.rnn_tanh,
    torch.rnn_relu: recurrent.rnn_relu,
    torch.lstm_cell: recurrent.lstm_cell,
    torch.gru_cell: recurrent.gru_cell,
    torch.rnn_tanh_cell: recurrent.rnn_tanh_cell,
    torch.rnn_relu_cell: recurrent.rnn_relu_cell,
}

# What raises where numbers are bad; these return also whether they are good.
CHECKS: dict[Callable[..., Any], Callable[..., check.Checked]] = {
    F.binary_cross_entropy: check.of_finite(F.binary_cross_entropy, "input"),
    Tensor.__bool__: check.truth,
    Tensor.inverse: check.by_info(torch.linalg.inv_ex),
    torch._is_all_true: check.is_all_true,
    torch.inverse: check.by_info(torch.linalg.inv_ex),
    torch.linalg.cholesky: check.by_info(torch.linalg.cholesky_ex),
    torch.linalg.eigh: check.of_finite(torch.linalg.eigh, "A"),
    torch.linalg.eigvalsh: check.of_finite(torch.linalg.eigvalsh, "A"),
    torch.linalg.inv: check.by_info(torch.linalg.inv_ex),
    torch.linalg.pinv: check.of_finite(torch.linalg.pinv, "A"),
    torch.linalg.solve: check.by_info(torch.linalg.solve_ex),
    torch.linalg.svd: check.of_finite(torch.linalg.svd, "A"),
    torch.linalg.svdvals: check.of_finite(torch.linalg.svdvals, "A"),
}

# Properties that torch makes in C.
_DATA, _SET_DATA = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]
_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_SET_REQUIRES_GRAD = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]

# What these draw inside, where no mode can see it.
_HIDDEN_DRAWS: dict[Callable[..., Any], Callable[..., list[Draw]]] = {
    F.scaled_dot_product_attention: attention.attention_draws,
    torch.lstm: recurrent.recurrent_draws,
    torch.gru: recurrent.recurrent_draws,
    torch.rnn_tanh: recurrent.recurrent_draws,
    torch.rnn_relu: recurrent.recurrent_draws,
}


class OpenDraws(CallMode):
    """Let functions that draw inside draw as `F.dropout` does, as those of a CPU do by themselves.

    On a GPU fused attention draws in an order of its own, and cuDNN's recurrent layers draw from a state that no
    generator has. Neither could be repeated for all members, nor for one that trains alone. Attention with dropout is
    computed by `SDPBackend.MATH` here, and recurrent layers with dropout without cuDNN. A binary cross entropy raises
    on the host, before its kernel ends all; all else is left as it is.

    Attributes:
        is_needed: whether there was such a function.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_needed = False

    @staticmethod
    def matters_on(device: torch.device) -> bool:
        """Whether a device has kernels that draw otherwise."""
        return device.type != "cpu"

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute one call, openly if it draws."""
        if func in _HIDDEN_DRAWS and self.matters_on(args[0].device) and _HIDDEN_DRAWS[func](*args, **kwargs):
            self.is_needed = True
            with _openly():
                return func(*args, **kwargs)
        if func is F.binary_cross_entropy and (args[0] if args else kwargs["input"]).device.type == "cuda":
            self.is_needed = True
            check.raise_on_host(*args, **kwargs)
        # The one function written in Python that calls one of these.
        return super().handle(func, args, kwargs) if func is F.multi_head_attention_forward else func(*args, **kwargs)


@contextmanager
def _openly() -> Iterator[None]:
    """Set aside the kernels that draw otherwise."""
    has_cudnn = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.enabled = has_cudnn


class Recorder(CallMode):
    """Note what the code under it draws at random, and change nothing but where that is drawn; see `OpenDraws`."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the draws of one call."""
        if (draw := find_draw(func, args, kwargs)) is not None:
            self.draws.append(draw.kept())
            return func(*args, **kwargs)
        if func in _HIDDEN_DRAWS and (draws := _HIDDEN_DRAWS[func](*args, **kwargs)):
            self.draws.extend(draws)
            with OpenDraws():
                return func(*args, **kwargs)
        return super().handle(func, args, kwargs)


class MemberRules(CallMode):
    """Compute the operators of the code under it by the rules, and its random draws from what was drawn.

    Args:
        draws: what a recorded pass drew.
        drawn: what these draws gave, in their order.
        owns_new: whether each member has new tensors for itself, and may write into them.

    Attributes:
        is_good: whether the member's numbers pass the checks that would raise; None where there are none.

    Raises:
        UnforeseenDrawError: at a draw, when the code draws more than was recorded.
        RuntimeError: when it draws otherwise.
    """

    def __init__(self, draws: Sequence[Draw], drawn: Sequence[Tensor], *, owns_new: bool = False) -> None:
        super().__init__()
        self._owns_new = owns_new
        self._draws = iter(draws)
        self._drawn = iter(drawn)
        self._of_seeds = next(filter(is_mapped, drawn), None)  # one that each seed has drawn for itself
        self._level = torch._C._functorch.maybe_current_level()
        self._apart: list[tuple[Tensor, int]] = []  # what would share memory in an ordinary pass, and its version
        self._failure: Exception | None = None  # the first of a call
        self.is_good: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except Exception as error:
            self._failure = self._failure or error
            raise

    def check_end(self, *, is_repeated: bool = False) -> None:
        """Raise what the code has caught, or RuntimeError if it has drawn less than recorded, or written into a view.

        A `try` that is there for an ordinary pass would else take the way that is meant for another error: with
        `float(loss)` in it, say, which vmap refuses.

        Args:
            is_repeated: whether the code was run anew after an error, which is known, then.
        """
        if self._failure is not None and not is_repeated:
            raise self._failure
        if next(self._draws, None) is not None:
            raise RuntimeError("the loss draws fewer random numbers than in an ordinary pass")
        if any(_innermost(tensor)._version != version for tensor, version in self._apart):
            raise RuntimeError("the loss writes into a view, or into what it is a view of, that is a copy for members")

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute one call by its rule, if it has one."""
        if is_tracing() and takes_values(func, args, kwargs):
            raise DataDependentError(f"{func.__name__} takes values out of tensors, which a trace would keep for ever")
        if (draw := find_draw(func, args, kwargs)) is not None:
            self._check_foreseen(draw, func)
            result, is_good = replay(func, args, kwargs, next(self._drawn))
            if is_mapped(is_good):
                self._note(is_good)
            return result
        normalization.check_gradients(func, args, kwargs, self._level or 0)
        args = check.in_one_batch(func, args)
        result = self._batched(func, args, kwargs) if is_mapped_last() else NotImplemented
        if result is NotImplemented and func in CHECKS and torch._C._functorch.maybe_current_level() == self._level:
            result, is_good = CHECKS[func](*args, **kwargs)
            self._note(is_good)
        return super().handle(func, args, kwargs) if result is NotImplemented else result

    def _note(self, is_good: Tensor | None) -> None:
        """Note whether a member's numbers are good; within transforms of the code's own, that is of samples."""
        if is_good is not None and torch._C._functorch.maybe_current_level() == self._level:
            self.is_good = is_good if self.is_good is None else self.is_good & is_good

    def _check_foreseen(self, draw: Draw, func: Callable[..., Any]) -> None:
        foreseen = next(self._draws, None)
        if foreseen is None:
            raise UnforeseenDrawError(f"`{func.__name__}` draws random numbers that were not foreseen")
        if any(isinstance(own, Tensor) and is_mapped(own) for own in draw.args):
            raise RuntimeError(f"`{func.__name__}` draws from another distribution for each member")
        if not draw.is_like(foreseen):
            raise RuntimeError("the loss draws other random numbers than in an ordinary pass")

    def _batched(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute one call where vmap would not, or not well; NotImplemented where it does."""
        if func == _REQUIRES_GRAD:
            # Autograd runs outside vmap, and has the answer, if not a gradient that the code takes itself.
            return func(*args) or _innermost(args[0]).requires_grad
        if func in _SET_REQUIRES_GRAD:  # which vmap refuses; without it, a checkpointed layer may train nothing
            with enable_inplace_requires_grad(True):
                _innermost(args[0]).requires_grad_(*args[1:], **kwargs)
            return args[0]
        if func == _DATA:
            return args[0].detach()
        if func == _SET_DATA and _is_all_of_itself(*args):
            return args[0].copy_(args[1])
        if func in (Tensor.view, Tensor.view_as) and not kwargs:
            return self._view(func, *args)
        if func in (Tensor.as_strided, torch.as_strided) and is_mapped(args[0]):
            raise RuntimeError("`as_strided` goes by where numbers lie in memory, which is elsewhere for members")
        if func is torch.empty and self._of_seeds is not None:
            like = func(*args, **kwargs)  # into which a draw may be written, as `Normal.rsample` does
            return self._of_seeds.new_empty(like.shape, dtype=like.dtype, device=like.device)
        if isinstance(out := kwargs.get("out"), Tensor):
            with self:
                result = func(*args, **{**kwargs, "out": None})  # vmap has nothing that writes where it is told
            # Torch would give it the other's shape.
            return out.copy_(result) if result.shape == out.shape else NotImplemented
        if self._owns_new and func in MAKERS:
            return of_each(func(*args, **kwargs))
        if is_on_lists(func):
            return one_by_one(func, args, kwargs)
        if func is torch.autograd.grad:
            grads = gradient.grad(*args, **kwargs)
            return func(*args, **kwargs) if grads is NotImplemented else grads
        if func in RULES:
            # A rule is made of torch functions, which may have rules themselves.
            with self:
                return RULES[func](*args, **kwargs, drawn=self._hidden_drawn())
        return NotImplemented

    def _view(self, func: Callable[..., Any], tensor: Tensor, *shape: Any) -> Tensor:
        """View a tensor, or copy what lies otherwise than in an ordinary pass, such as images with channels last."""
        try:
            viewed: Tensor = func(tensor, *shape)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
        else:
            return viewed
        copied = tensor.reshape_as(*shape) if func is Tensor.view_as else tensor.reshape(*shape)
        self._apart += [(own, _innermost(own)._version) for own in (tensor, copied)]
        return copied

    def _hidden_drawn(self) -> Iterator[Tensor]:
        """What was drawn for a function that draws inside."""
        for drawn in self._drawn:
            next(self._draws, None)
            yield drawn
        raise UnforeseenDrawError("random numbers are drawn that were not foreseen")


def _is_all_of_itself(tensor: Tensor, data: Tensor) -> bool:
    """Whether to give a tensor other data is to write them into it: it is no part of another, nor seen by autograd."""
    own = _innermost(tensor)
    is_alone = not own.requires_grad and own._base is None
    return is_alone and (data.shape, data.dtype, data.device) == (tensor.shape, tensor.dtype, tensor.device)


def _innermost(tensor: Tensor) -> Tensor:
    """The tensor under all that vmap wraps around it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
