"""Swapping torch's LSTM modules for ours, and back, in models that others wrote.

A swap changes the class of a module and nothing else: its parameters, buffers, hooks,
parametrizations and modes stay the very same objects. What a call did is logged by the logger
`lstm_fast`, at level INFO.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import logging
import threading
import types
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch.nn import Module

from lstm_fast import options
from lstm_fast.lstm import LSTM, inherits_checks
from lstm_fast.lstm_cell import LSTMCell

_FUSED: dict[type[Module], type[Module]] = {torch.nn.LSTM: LSTM, torch.nn.LSTMCell: LSTMCell}
_TORCH = {fused: base for base, fused in _FUSED.items()}

_log = logging.getLogger("lstm_fast")
_Model = TypeVar("_Model", bound=Module)


def accelerate(model: _Model) -> _Model:
    """Make every `nn.LSTM` and `nn.LSTMCell` in `model` ours, in place, and return it.

    A subclass that a client wrote keeps its methods; its calls of `super().forward` reach ours.
    Modules that are ours already are left alone.

    Raises:
        TypeError: `model` is not a module.
    """
    return _swap(model, _fused_type, "accelerated")


def restore(model: _Model) -> _Model:
    """Undo `accelerate`, for what must not depend on us (a pickle, quantization), in place.

    Modules that were constructed as ours become torch's too.

    Raises:
        TypeError: `model` is not a module, or one in it is of a class that derives from
            `lstm_fast.LSTM` by its own source, or uses an option that torch's lacks; nothing has
            been changed then.
    """
    for name, module in model.named_modules() if isinstance(model, Module) else ():
        if isinstance(module, tuple(_TORCH)) and (used := options.used(module)):
            raise TypeError(
                f"{name or 'the model itself'} cannot be restored: torch.nn has no module with "
                f"{used}{options.instead(module)}"
            )
    model = _swap(model, _torch_type, "restored")
    for module in model.modules():
        module.__dict__.pop("_frozen_weights", None)
        options.remove(module)
    return model


class patch:  # noqa: N801 (used like a function)
    """Make what code constructs as `nn.LSTM` or `nn.LSTMCell` from now on ours.

    A call patches at once, for good or until `undo`; `with patch():` undoes at the end of the
    block. It reaches names that were imported before, and subclasses. The classes of torch stay
    where they are, so that `isinstance`, pickles and class statements see no difference; only
    their constructors turn a finished module into ours. Patches may be nested.
    """

    _active: ClassVar[list[patch]] = []
    _constructors: ClassVar[dict[type[Module], Callable[..., None]]] = {}

    def __init__(self) -> None:
        self.swapped = 0
        """How many modules this patch has made ours."""
        if not self._active:
            for base in _FUSED:
                self._constructors[base] = base.__init__
                base.__init__ = _swapping(base.__init__)  # type: ignore[method-assign]
        self._active.append(self)
        _log.info("patched: torch.nn.LSTM and LSTMCell are constructed as lstm_fast's")

    def undo(self) -> None:
        """End this patch; a second call does nothing."""
        if self not in self._active:
            return
        self._active.remove(self)
        if not self._active:
            for base, constructor in self._constructors.items():
                base.__init__ = constructor  # type: ignore[method-assign]
        _log.info("patch undone; %d modules were constructed as lstm_fast's", self.swapped)

    def __enter__(self) -> patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def _swapping(constructor: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(constructor)
    def construct(self: Module, *args: Any, **kwargs: Any) -> None:
        constructor(self, *args, **kwargs)
        fused = _fused_type(type(self))
        if fused is not type(self):
            self.__class__ = fused
            for active in patch._active:
                active.swapped += 1

    return construct


def _swap(model: _Model, new_type: Callable[[type], type], done: str) -> _Model:
    require_module(model)
    swaps = [(name, m, _new_class(type(m), new_type)) for name, m in model.named_modules()]
    swaps = [(name, m, new) for name, m, new in swaps if new is not type(m)]
    for _, module, new in swaps:
        module.__class__ = new
    tell(done, model, [name for name, _, _ in swaps])
    return model


def require_module(model: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def tell(done: str, model: Module, names: list[str]) -> None:
    """Log what was done to the modules of these names in a model."""
    told = ", ".join(name or "the model itself" for name in names) or "there are none"
    _log.info("%s %d modules of %s: %s", done, len(names), type(model).__name__, told)


def _new_class(cls: type, new_type: Callable[[type], type]) -> type:
    """The class that a module of `cls` shall have. Torch itself derives classes from others, of a
    module with parametrizations or one that `fully_shard` shards: from the new class then."""
    if cls in _FUSED or cls.__module__.partition(".")[0] != "torch":
        return new_type(cls)
    bases = tuple(_new_class(b, new_type) if issubclass(b, Module) else b for b in cls.__bases__)
    if bases == cls.__bases__:
        return cls
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return types.new_class(cls.__name__, bases, exec_body=lambda ns: ns.update(own))


def _fused_type(cls: type) -> type:
    base = next((base for base in _FUSED if issubclass(cls, base)), None)
    if base is None or issubclass(cls, _FUSED[base]):
        return cls
    if cls is base:
        return _FUSED[base]
    with _deriving:
        # Kept by its modules alone: Python's list of subclasses is a weak one.
        subclasses = type.__subclasses__(cls)
        found = (c for c in subclasses if vars(c).get("_written_as") is cls)
        return next(found, None) or _derive(cls, _FUSED[base])


_deriving = threading.RLock()  # so that threads agree on one class


class _Unnoticed:
    """A first base, so that no `__init_subclass__` of a client's hears of our class, which is not
    one that the client wrote."""

    def __init_subclass__(cls) -> None:
        if issubclass(cls, LSTM):
            cls._inherits_checks = inherits_checks(cls)


def _derive(cls: type, fused: type) -> type:
    """A client's class with ours below it, known to pickle by the name of the client's."""
    own: dict[str, Any] = {name: getattr(cls, name) for name in ("__module__", "__qualname__")}
    own |= {"__doc__": cls.__doc__, "__reduce_ex__": _reduce_ex, "_written_as": cls}
    if isinstance(later := getattr(cls, "cls_to_become", None), type):  # of torch's lazy modules
        own["cls_to_become"] = _fused_type(later)

    def derived(*bases: type) -> type:
        return types.new_class(cls.__name__, bases, exec_body=lambda ns: ns.update(own))

    if any("__init_subclass__" in vars(base) for base in cls.__mro__[:-1]):
        unnoticed = derived(_Unnoticed, cls, fused)
        with contextlib.suppress(TypeError):  # of classes whose objects are laid out otherwise
            object.__setattr__(object.__new__(cls), "__class__", unnoticed)
            return unnoticed
    return derived(cls, fused)


def _reduce_ex(self: Any, protocol: Any) -> Any:
    reduced = self._written_as.__reduce_ex__(self, max(protocol, 2))
    if isinstance(reduced, tuple) and reduced[:2] == (copyreg.__newobj__, (type(self),)):  # type: ignore[attr-defined]
        return _new, (self._written_as,), *reduced[2:]
    return reduced


def _new(written_as: type) -> Any:
    fused: Any = _fused_type(written_as)
    return fused.__new__(fused)


def _torch_type(cls: type) -> type:
    if cls in _TORCH:
        return _TORCH[cls]
    if "_written_as" in vars(cls):
        written_as: type = vars(cls)["_written_as"]
        return written_as
    if issubclass(cls, tuple(_TORCH)):
        raise TypeError(
            f"{cls.__qualname__} derives from lstm_fast itself and cannot be restored: derive it "
            "from torch's class and accelerate the model"
        )
    return cls
