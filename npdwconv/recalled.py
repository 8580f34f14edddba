"""Recalling room: what a call like one before need not be asked again. Checks cost more than a small convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npdwconv.device import DeviceArray, adopted, on_device
from npdwconv.dispatch import exists, kernel, surroundings
from npdwconv.errors import DTypeError
from npdwconv.layouts import Array
from npdwconv.memory import empty
from npdwconv.threads import get_num_threads

_PLAIN = {int, str, type(None)}
_MOST_REMEMBERED = 4096


def recall(name: str, arrays: tuple[Any, ...], options: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """`recall_key`, and the arrays; another package's device arrays as ours, so that such calls are recalled, too."""
    key = recall_key(name, arrays, options)
    if key is None and any(array is not None and type(array) is not np.ndarray for array in arrays):
        arrays = tuple(placed(name, array) for array in arrays)
        key = recall_key(name, arrays, options)
    return key, arrays


def placed(name: str, array: Any) -> Any:
    """A device array of another package as ours; anything else, and what cannot be taken, as it is."""
    if array is None or isinstance(array, np.ndarray) or not on_device(array):
        return array
    try:
        return adopted(name, array)
    except DTypeError:
        return array  # the check of operands says what is wrong, and in which call


def recall_key(name: str, arrays: tuple[Any, ...], options: tuple[Any, ...]) -> Any:
    """What a checked call depends on beside its arrays' contents; None where a check might depend on more.

    Only NumPy's own arrays and plain ints, strings and tuples of them count: ``True == 1``, but only one is a stride.
    """
    if not _plain(options):
        return None
    parts: list[Any] = [name, options]
    for array in arrays:
        if array is None:
            parts.append(None)
        elif type(array) is np.ndarray:
            parts.append((array.shape, array.dtype))
        elif type(array) is DeviceArray:
            parts.append((array.shape, array.dtype, DeviceArray))
        else:
            return None
    return tuple(parts)


def remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep ``value``, forgetting everything when there are too many."""
    if len(memory) >= _MOST_REMEMBERED:
        memory.clear()
    memory[key] = value


def _plain(values: tuple[Any, ...]) -> bool:
    for value in values:
        kind = type(value)
        if kind not in _PLAIN and not (kind is tuple and _plain(value)):
            return False
    return True


class Ready(NamedTuple):
    """A call like one before: it only has to be told where its arrays are."""

    run: Callable[..., bool]  # over the operands and the result; False where these do not lie as it wants them
    shape: tuple[int, ...]


_ready: dict[Any, Ready | None] = {}  # None: a call that never is


def ready_key(name: str, backend: Any, operands: tuple[Any, ...], options: tuple[Any, ...]) -> Any:
    """All that a call depends on beside its arrays' contents and places; None where it might be more."""
    if type(operands[0]) is not np.ndarray or not (backend is None or type(backend) is str) or not _plain(options):
        return None
    dtype = operands[0].dtype
    shapes: list[Any] = []
    for array in operands:
        if array is None:
            shapes.append(None)
        elif type(array) is np.ndarray and array.dtype is dtype:
            shapes.append(array.shape)
        else:
            return None
    return name, backend, surroundings(), get_num_threads(), options, dtype, *shapes


def at_once(key: Any, operands: tuple[Any, ...], out: Any) -> Array | None:
    """The result of a call that is ready; None where it is not, or ``out`` is to be checked more closely."""
    ready = None if key is None else _ready.get(key)
    if ready is None:
        return None
    result: Array
    if out is None:
        result = empty(operands[0], ready.shape)
    elif type(out) is np.ndarray and out.shape == ready.shape and out.dtype is operands[0].dtype:
        result = out
    else:
        return None
    return result if ready.run(*operands, result) else None


def make_ready(
    key: Any,
    name: str,
    operation: str,
    backend: str | None,
    arrays: tuple[Array | None, ...],
    how: tuple[Any, ...],
    shape: tuple[int, ...],
) -> None:
    """Let the next call of this key run `at_once`, if the backend has ``operation`` for that.

    ``arrays`` are a kernel's operands and result, and ``how`` what follows them; ``shape`` is the caller's result's.
    """
    if key is None or key in _ready or not exists(operation, backend, arrays[0]):
        return
    run = prepared(name, operation, backend, arrays, how)
    remember(_ready, key, None if run is None else Ready(run, shape))


def prepared(
    name: str, operation: str, backend: str | None, arrays: tuple[Any, ...], how: tuple[Any, ...]
) -> Callable[..., bool] | None:
    """What runs such calls at once, if the backend has ``operation`` for that and they are of that kind."""
    if not exists(operation, backend, arrays[0]):
        return None
    prepare: Any = kernel(name, operation, backend)
    run: Callable[..., bool] | None = prepare(*arrays, *how)
    return run
