"""Follows the pickle of a PyTorch file step by step, without calling anything that it names.

A few names stand for plain tensors and for what may lie beside them; all others are refused. What comes out is what the
pickle describes, with every tensor as an :class:`UnplacedTensor`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import torch

from ptuning.core.reading import shortened

MAX_PICKLE = 32 * 2**20
"""Bytes of a pickle without its tensors' data; a hundred a tensor are usual."""
_MAX_STEPS = 5_000_000  # of a pickle, about 40 a tensor
_MAX_DIMENSIONS = 16

_STORAGES: dict[str, torch.dtype | None] = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "ShortStorage": torch.int16,
    "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": None,
}  # fmt: skip
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "sparse", "_rebuild_sparse_csr_tensor": "sparse", "_rebuild_qtensor": "quantised",
    "_rebuild_nested_tensor": "nested", "_rebuild_meta_tensor_no_storage": "meta (without data)",
    "_rebuild_wrapper_subclass": "wrapped", "_rebuild_device_tensor_from_numpy": "device",
    "_rebuild_device_tensor_from_cpu_tensor": "device",
}  # fmt: skip
# What may stand beside tensors; nobody needs its value.
_OPAQUE = frozenset(
    (
        "_codecs.encode", "torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter",
        "builtins.set", "builtins.bytearray", "collections.Counter",
    )
)  # fmt: skip


class Storage(NamedTuple):
    """The data of a tensor or several: ``dtype`` is None where ``elements`` counts bytes."""

    dtype: torch.dtype | None
    key: str
    elements: int

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self.elements * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 1 if self.dtype is None else self.dtype.itemsize


class UnplacedTensor(NamedTuple):
    """A tensor as the pickle describes it; ``stride`` and ``offset`` count elements of its storage."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Name:
    """Something in a module that the pickle names."""

    module: str
    name: str

    @property
    def whole(self) -> str:
        return f"{self.module.replace('__builtin__', 'builtins')}.{self.name}"


class _Mark:
    """Where a group of values begins on the stack."""


_MARK = _Mark()
_MADE: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "MARK": lambda: _MARK,
}  # fmt: skip
_GIVEN = frozenset(
    (
        "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
        "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES",
    )
)  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Capped:
    """A file that is never asked for more than a pickle may have: what is asked for is allocated first."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        """So many bytes."""
        if size > MAX_PICKLE:
            raise ValueError(f"it claims a text of {size} bytes")
        return self._file.read(size)

    def readline(self) -> bytes:
        """The next line."""
        return self._file.readline(MAX_PICKLE)


class PickleSteps:
    """Follows the steps of a pickle.

    Attributes:
        storages: those that it named.
    """

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def follow(self, file: BinaryIO) -> Any:
        """What the pickle at the file's position describes; the file's position is after it on return."""
        start = file.tell()
        steps = pickletools.genops(_Capped(file))  # type: ignore[arg-type]  # it asks for no other methods
        for count, (operation, argument, position) in enumerate(steps):
            if operation.name == "STOP":
                return self._stack.pop()
            if count > _MAX_STEPS or (position or 0) - start > MAX_PICKLE:
                raise ValueError("its description of the tensors never ends")
            self._step(operation.name, argument)
        raise ValueError("it ends in the middle")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _GIVEN:
            stack.append(argument)
        elif name in _MADE:
            stack.append(_MADE[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"refused: no file of tensors needs the step {name}")

    def _since_mark(self) -> list[Any]:
        position = len(self._stack) - 1
        while self._stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise ValueError("it is damaged")
        values = self._stack[position + 1 :]
        del self._stack[position:]
        return values

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _append(self, _: Any) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(values)

    def _setitem(self, _: Any) -> None:
        pair = [self._stack.pop(), self._stack.pop()]
        self._fill(pair[::-1])

    def _setitems(self, _: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        for name, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(name, str | int | float | None):  # others might take long to compare, or never end
                raise ValueError(f"a name in it is a {type(name).__name__}")
            if isinstance(target, dict):
                target[name] = value

    def _build(self, _: Any) -> None:
        self._stack.pop()  # attributes of a state dict: versions of modules

    def _global(self, argument: str) -> None:
        self._stack.append(_known(*argument.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_known(str(module), str(name)))

    def _binpersid(self, _: Any) -> None:
        kind, storage, key, _place, elements, *view = self._stack.pop()
        if kind != "storage" or not isinstance(storage, _Name) or not isinstance(key, str) or any(view):
            raise ValueError("it names data of another kind")
        described = Storage(_STORAGES[storage.name], key, *_whole([elements]))
        self.storages.append(described)
        self._stack.append(described)

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("it is damaged")
        self._stack.append(_result(function, arguments))


_ACTIONS: dict[str, Callable[[PickleSteps, Any], None]] = {
    "TUPLE": PickleSteps._tuple, "APPEND": PickleSteps._append, "APPENDS": PickleSteps._appends,
    "SETITEM": PickleSteps._setitem, "SETITEMS": PickleSteps._setitems,
    "BUILD": PickleSteps._build, "GLOBAL": PickleSteps._global,
    "STACK_GLOBAL": PickleSteps._stack_global, "BINPERSID": PickleSteps._binpersid, "REDUCE": PickleSteps._reduce,
}  # fmt: skip


def _known(module: str, name: str) -> _Name:
    """A name that stands for plain tensors or for what may lie beside them; all others are refused."""
    known = _Name(module, name)
    of_torch = module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES
    dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
    if of_torch or dtype or known.whole in _OPAQUE or known.whole in _RESULTS or known.whole == _DICTIONARY:
        return known
    if module in ("torch._utils", "torch._tensor") and name in _OTHER_TENSORS:
        raise ValueError(f"it holds a {_OTHER_TENSORS[name]} tensor; only plain dense tensors are read")
    raise ValueError(f"refused: it would run code on loading ({shortened(known.whole, 80)}); no weights need that")


_DICTIONARY = "collections.OrderedDict"


def _result(function: _Name, arguments: tuple[Any, ...]) -> Any:
    """What a named function would make of its arguments."""
    if function.whole == _DICTIONARY:
        pairs = arguments[0] if arguments else ()
        return {str(name): value for name, value in pairs} if isinstance(pairs, list | tuple) else {}
    return _RESULTS[function.whole](*arguments) if function.whole in _RESULTS else None


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> UnplacedTensor:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``: whether it wants gradients, its hooks and its signs follow."""
    return _unplaced(storage, getattr(storage, "dtype", None), offset, shape, stride, more[2:])


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> UnplacedTensor:
    """``_rebuild_tensor_v3``: of a dtype that has no storage class."""
    dtype = more[2]
    known = isinstance(dtype, _Name) and vars(torch).get(dtype.name)
    return _unplaced(storage, known, offset, shape, stride, more[3:])


def _unplaced(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any, signs: Iterable[Any]) -> UnplacedTensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype) or any(signs):
        raise ValueError("it holds a tensor of an unknown kind; only plain dense tensors are read")
    sizes, steps = _whole(shape), _whole(stride)
    if len(sizes) != len(steps) or len(sizes) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {len(sizes)} sizes and {len(steps)} strides")
    return UnplacedTensor(storage, dtype, sizes, steps, *_whole([offset]))


def _whole(numbers: Any) -> tuple[int, ...]:
    """Numbers that count something."""
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**62:
            raise ValueError(f"{shortened(repr(number), 60)} stands where a size belongs")
    return tuple(numbers)


def _attributed(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor, or one of a class of its own, with attributes."""
    plain = isinstance(kind, _Name) and kind.whole in ("torch.Tensor", "torch.nn.parameter.Parameter")
    if not plain or not isinstance(function, _Name) or function.whole not in _RESULTS or not isinstance(arguments, tuple):
        raise ValueError("it holds a tensor of a class of its own; only plain dense tensors are read")
    return _result(function, arguments)


def _parameter(tensor: Any, *_: Any) -> Any:
    """A parameter is its tensor; whether it was trained is not asked."""
    return tensor


_RESULTS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype, "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _attributed,
}  # fmt: skip
