"""Values that a model's code makes from nothing but numbers: the same for all parties, so the code may ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

LARGEST = 1 << 20
"""Elements of the largest tensor whose values are kept."""

_ASKING = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "equal", "allclose")
_MADE = ("arange", "zeros", "ones", "full", "eye", "linspace", "logspace", "tensor", "tril_indices", "triu_indices")
_ALIKE = {"zeros_like": 0, "new_zeros": 0, "ones_like": 1, "new_ones": 1, "full_like": None, "new_full": None}
"""What looks at a tensor's shape alone, and the number it fills the result with (None: its argument)."""
_DIFFERENT_EACH_TIME = ("rand", "bernoulli", "multinomial", "normal", "poisson", "exponential", "uniform", "empty")
_AT_POSITIONS = ("__getitem__", "__setitem__")
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class _Unknown(Exception):
    """Something that a value depends on is not known."""


class KnownValues(TorchFunctionMode):
    """While a model is captured: computes beside it what follows from its code alone, and answers where values are asked.

    Nothing of inputs, weights and buffers is known. What is written into a tensor and not known makes it unknown, with
    all that shares its memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = WeakIdKeyDictionary()
        self.spoiled: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # the branches of a torch.cond, which nothing of here can follow
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name in _AT_POSITIONS and isinstance(args[1], tuple):
            args = (args[0], self._without_masks(args[1]), *args[2:])
        if name in _ASKING:
            try:
                return self._computed(function, args, kwargs)
            except _Unknown:
                return function(*args, **kwargs)
        if name in _MADE:
            args, kwargs = tree_map_only(torch.Tensor, self._as_number, (args, kwargs))
        made = function(*args, **kwargs)
        try:
            value = self._value(name, function, args, kwargs, made)
        except _Unknown:
            if _writes(name, kwargs):
                self._spoil(args[:1], kwargs.get("out"))
        else:
            self._note(made, value)
        return made

    def _value(self, name: str, function: Callable, args: tuple, kwargs: dict[str, Any], made: Any) -> Any:
        """What a function gives. Raises _Unknown."""
        results = [part for part in tree_leaves(made) if isinstance(part, torch.Tensor)]
        if not all(map(_fits, results)) or any(word in name for word in _DIFFERENT_EACH_TIME):
            raise _Unknown
        if name in _ALIKE and results:
            number = _ALIKE[name] if _ALIKE[name] is not None else kwargs.get("fill_value", args[-1])
            return self._computed(torch.full, (made.shape, number), {"dtype": made.dtype})
        from_tensors = any(isinstance(part, torch.Tensor) for part in tree_leaves((args, kwargs)))
        if not (from_tensors and (results or _writes(name, kwargs)) or name in _MADE):
            raise _Unknown
        return self._computed(function, args, kwargs)

    def _computed(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What a function of known values gives. Raises _Unknown where one is not, or the function cannot be computed."""
        args, kwargs = tree_map_only(torch.Tensor, self._known, (args, kwargs))
        if any(isinstance(part, _SYMBOLS) for part in tree_leaves((args, kwargs))):
            raise _Unknown
        try:
            with _disable_current_modes(), torch.no_grad():
                return function(*args, **kwargs)
        except Exception as problem:
            raise _Unknown from problem

    def _known(self, tensor: torch.Tensor) -> torch.Tensor:
        value = self.values.get(tensor)
        if value is None or value.untyped_storage().data_ptr() in self.spoiled:
            raise _Unknown
        return value

    def _without_masks(self, index: tuple) -> tuple:
        """Positions in place of known masks, which have others beside them."""
        tensors = [part for part in index if isinstance(part, torch.Tensor)]
        out: list[Any] = []
        for part in index:
            places = self._places_of(part) if len(tensors) > 1 else None
            out += [part] if places is None else [torch.tensor(at) for at in places]
        return tuple(out)

    def _places_of(self, part: Any) -> list[list[int]] | None:
        """Where a mask that the model's code makes, or has as a constant, is set; None for everything else."""
        if not isinstance(part, torch.Tensor) or part.dtype != torch.bool or not part.ndim:
            return None
        try:  # torch.export has other types for inputs, weights and buffers
            known = part if type(part) is torch.Tensor else self._known(part)
        except _Unknown:
            return None
        with _disable_current_modes():
            return [at.tolist() for at in known.nonzero(as_tuple=True)]

    def _as_number(self, tensor: torch.Tensor) -> Any:
        """A tensor that is one known number as that number, where sizes may be asked for."""
        try:
            return tensor if tensor.ndim else self._known(tensor).item()
        except _Unknown:
            return tensor

    def _note(self, made: Any, value: Any) -> None:
        for part, known in zip(tree_leaves(made), tree_leaves(value), strict=False):
            if isinstance(part, torch.Tensor) and isinstance(known, torch.Tensor) and part.shape == known.shape:
                self.values[part] = known

    def _spoil(self, *written: Any) -> None:
        for tensor in tree_leaves(written):
            value = self.values.get(tensor) if isinstance(tensor, torch.Tensor) else None
            if value is not None:  # kept, so that no other tensor is put where it is
                self.spoiled[value.untyped_storage().data_ptr()] = value


def _fits(tensor: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in tensor.shape) and tensor.numel() <= LARGEST


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a function writes into a tensor that it is given."""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("__setitem__", "__set__") or name.startswith("__i") or kwargs.get("out") is not None
