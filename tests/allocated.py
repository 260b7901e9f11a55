"""How many bytes of tensors some work holds at its worst moment, counted and not measured."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Allocated(TorchDispatchMode):
    """Follows the memory of every tensor made within; what an operator needs only inside itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = {_storage(value)._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        result = operator(*args, **(kwargs or {}))
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
        for storage in (_storage(value) for value in tree_leaves(result) if isinstance(value, Tensor)):
            if storage._cdata not in given and storage._cdata not in self._live:
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes of all tensors that are made in ``work`` and exist at one time, at most."""
    with _Allocated() as allocated:
        work()
    return allocated.peak
