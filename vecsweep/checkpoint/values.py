"""Values as JSON, with tensors and arrays beside it: what a run has to remember, without pickle.

A value that JSON does not have is an object with the key "is", which says what it is, and "of", what of.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecsweep._engine.caller.places import GONE

Json = Any


class Box:
    """Tensors and arrays by name, as a value refers to them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.arrays: dict[str, NDArray[Any]] = {}
        self._names: dict[object, str] = {}  # of tensors, by where they lie

    def pack(self, value: Any, name: str) -> Json:
        """Make JSON of a value, whose tensors and arrays go into the box under names that begin with this one.

        Raises:
            TypeError: it holds an object that only pickle could keep.
        """
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"is": "float", "of": str(value)}
        if type(value) is list:
            return self._pack_all(value, name)
        if isinstance(value, Mapping):
            if all(type(key) is str for key in value) and "is" not in value:
                return {key: self.pack(own, f"{name}/{key}") for key, own in value.items()}
            pairs = [(self.pack(key, f"{name}/{i}"), own) for i, (key, own) in enumerate(value.items())]
            return {"is": "dict", "of": [[key, self.pack(own, f"{name}/{key}")] for key, own in pairs]}
        if isinstance(value, Tensor):
            return self._pack_tensor(value, name)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSU":
            self.arrays[name] = np.asarray(value)
            return {"is": "array" if isinstance(value, np.ndarray) else "scalar", "of": name}
        return self._pack_other(value, name)

    def _pack_all(self, values: Any, name: str) -> list[Json]:
        return [self.pack(value, f"{name}/{i}") for i, value in enumerate(values)]

    def _pack_tensor(self, tensor: Tensor, name: str) -> Json:
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise TypeError(f"{name} is a tensor of layout {tensor.layout}")
        plain = tensor.detach()
        plain = torch.view_as_real(plain) if plain.is_complex() else plain
        place = (plain.data_ptr(), plain.dtype, plain.shape, plain.stride())
        name = self._names.setdefault(place, name)  # members may have one in common
        self.tensors[name] = plain
        return {"is": "complex tensor" if tensor.is_complex() else "tensor", "of": name}

    def _pack_other(self, value: Any, name: str) -> Json:
        if value is GONE:
            return {"is": "gone", "of": None}
        if type(value) in (tuple, torch.Size, set, frozenset):
            kind = "size" if isinstance(value, torch.Size) else type(value).__name__
            return {"is": kind, "of": self._pack_all(value, name)}
        if isinstance(value, torch.dtype | torch.device):
            return {"is": type(value).__name__, "of": str(value).removeprefix("torch.")}
        if type(value) is bytes:
            return {"is": "bytes", "of": value.hex()}
        if type(value) is complex:
            return {"is": "complex", "of": [self.pack(value.real, name), self.pack(value.imag, name)]}
        raise TypeError(f"{name} is of the class {type(value).__qualname__}")

    def unpack(self, value: Json) -> Any:
        """Make the value again that `pack` was given.

        Raises:
            KeyError: it refers to what is not in the box.
            ValueError: it is not what `pack` makes.
        """
        if isinstance(value, list):
            return [self.unpack(own) for own in value]
        if not isinstance(value, dict):
            return value
        if "is" not in value:
            return {key: self.unpack(own) for key, own in value.items()}
        kind, of = value["is"], value["of"]
        if kind in ("tensor", "complex tensor"):
            return self.tensors[of] if kind == "tensor" else torch.view_as_complex(self.tensors[of].contiguous())
        if kind in ("array", "scalar"):
            return self.arrays[of] if kind == "array" else self.arrays[of][()]
        if kind == "dict":
            return {self.unpack(key): self.unpack(own) for key, own in of}
        if kind == "dtype":
            found = getattr(torch, of, None)
            if not isinstance(found, torch.dtype):
                raise ValueError(f"{of!r} is no dtype")
            return found
        if kind not in _MADE:
            raise ValueError(f"{kind!r} is no kind of value")
        return _MADE[kind](self.unpack(of))


_MADE: dict[str, Callable[[Any], Any]] = {
    "gone": lambda _: GONE,
    "float": float,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "size": torch.Size,
    "device": torch.device,
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*parts),
}
