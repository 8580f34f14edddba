"""Choosing room: one literal table of operation and backend, which one a call takes, and why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from npdwconv import presence
from npdwconv.device import on_device
from npdwconv.errors import BackendUnavailableError, OptionError
from npdwconv.layouts import Array
from npdwconv.options import one_of

Kernel = Callable[..., None]

ROOMS = {"reference": "npdwconv.kernels.reference", "numba": "npdwconv.kernels.cpu", "cuda": "npdwconv.kernels.cuda"}
BACKENDS = tuple(ROOMS)

# operation -> the file that holds it on every floor, and the backends that have it
TABLE: dict[str, tuple[str, tuple[str, ...]]] = {
    "depthwise_fwd": ("depthwise", ("reference", "numba", "cuda")),
    "depthwise_bwd_activation": ("depthwise", ("reference", "numba", "cuda")),
    "depthwise_bwd_input": ("depthwise", ("reference", "numba", "cuda")),
    "depthwise_bwd_weight": ("depthwise", ("reference", "numba", "cuda")),
    "transpose_fwd": ("depthwise", ("reference", "numba", "cuda")),
    "transpose_bwd_activation": ("depthwise", ("reference", "numba", "cuda")),
    "transpose_bwd_input": ("depthwise", ("reference", "numba", "cuda")),
    "transpose_bwd_weight": ("depthwise", ("reference", "numba", "cuda")),
    "pointwise_fwd": ("pointwise", ("reference", "numba", "cuda")),
    "pointwise_bwd_activation": ("pointwise", ("reference", "numba", "cuda")),
    "pointwise_bwd_input": ("pointwise", ("reference", "numba", "cuda")),
    "pointwise_bwd_weight": ("pointwise", ("reference", "numba", "cuda")),
    "pointwise_panels": ("pointwise", ("reference", "numba", "cuda")),
    "separable_fwd": ("separable", ("reference", "numba", "cuda")),
    "separable_bwd": ("separable", ("reference", "numba", "cuda")),
    "bias_bwd": ("epilogue", ("reference", "numba", "cuda")),
    "network": ("network", ("numba",)),
    "depthwise_ready": ("depthwise", ("numba",)),
    "depthwise_input_ready": ("depthwise", ("numba",)),
    "depthwise_weight_ready": ("depthwise", ("numba",)),
    "transpose_ready": ("depthwise", ("numba",)),
    "separable_ready": ("separable", ("numba",)),
    "pointwise_ready": ("pointwise", ("numba",)),
    "pointwise_input_ready": ("pointwise", ("numba",)),
    "pointwise_weight_ready": ("pointwise", ("numba",)),
}

_OLDEST_NUMBA = (0, 62)
_VARIABLE = "NPDWCONV_BACKEND"
_STORED, _KEY = getattr(os.environ, "_data", None), os.environ.encodekey(_VARIABLE)  # CPython's dictionary behind it
_kernels: dict[Any, tuple[Kernel, ...]] = {}  # what was chosen, by all that a choice depends on
_existing: dict[Any, bool] = {}
_context: ContextVar[str | None] = ContextVar("npdwconv_backend", default=None)


class BackendChoice(NamedTuple):
    """Which backend a call takes, and why."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Calls inside that name no backend take ``name``; threads and tasks do not disturb each other.

    Raises:
        OptionError: there is no such backend.
        BackendUnavailableError: it cannot be used here; the message says why.

    >>> import npdwconv
    >>> with npdwconv.use_backend("reference"):
    ...     print(npdwconv.explain_backend())
    reference: use_backend('reference') is in force
    """
    one_of("backend", name, BACKENDS)
    require_usable(name)
    token = _context.set(name)
    try:
        yield
    finally:
        _context.reset(token)


def explain_backend(x: Any = None, *, backend: str | None = None) -> BackendChoice:
    """Which backend a call with the array ``x`` would take, and why; what it returns prints as a sentence.

    Raises:
        OptionError: ``backend`` (or the environment variable NPDWCONV_BACKEND) names none that exists.

    >>> import npdwconv
    >>> print(npdwconv.explain_backend(backend="reference"))
    reference: the call names backend='reference'
    """
    if backend is not None:
        return _chosen_by(one_of("backend", backend, BACKENDS), f"the call names backend={backend!r}")
    held = _context.get()
    if held is not None:
        return _chosen_by(held, f"use_backend({held!r}) is in force")
    named = os.environ.get(_VARIABLE)
    if named:
        one_of(f"environment variable {_VARIABLE}", named, BACKENDS)
        return _chosen_by(named, f"the environment variable {_VARIABLE} names it")
    if on_device(x):
        return _chosen_by("cuda", f"{type(x).__name__} lies on a CUDA device")
    reason = unusable("numba")
    if reason is None:
        return BackendChoice("numba", "numba is installed, and the array lies in CPU memory")
    return BackendChoice("reference", f"numba is not usable: {reason}")


def _chosen_by(name: str, why: str) -> BackendChoice:
    """A choice that something made, which may have to be told that it cannot be used."""
    reason = unusable(name)
    return BackendChoice(name, why if reason is None else f"{why}, but it cannot be used: {reason}")


def exists(operation: str, backend: str | None, x: Array | None) -> bool:
    """Whether the backend that a call with the host array ``x`` takes has ``operation``."""
    key = (operation, backend, *surroundings())
    found = _existing.get(key)
    if found is None:
        found = _existing[key] = explain_backend(x, backend=backend).backend in TABLE[operation][1]
    return found


def surroundings() -> tuple[Any, Any]:
    """What the choice of a backend depends on beside the call."""
    return _context.get(), _named()


def _named() -> Any:
    """What the environment variable holds, in some form: `os.environ` takes a microsecond to say that it is not set."""
    return os.environ.get(_VARIABLE) if _STORED is None else _STORED.get(_KEY)


def kernel(operator: str, operation: str, backend: str | None, *operands: Any) -> Kernel:
    """The kernel of ``operation`` on the backend that a call of ``operator`` takes."""
    return kernels(operator, (operation,), backend, *operands)[0]


def kernels(operator: str, operations: tuple[str, ...], backend: str | None, *operands: Any) -> tuple[Kernel, ...]:
    """The kernels of several operations on the backend that a call of ``operator`` takes."""
    x = None
    for operand in operands:
        if operand is not None and type(operand) is not np.ndarray and on_device(operand):
            x = operand
            break
    if not (backend is None or type(backend) is str):
        return tuple(_chosen(operator, operation, backend, x) for operation in operations)
    key = (operations, backend, x is not None, _context.get(), _named())
    found = _kernels.get(key)
    if found is None:
        found = _kernels[key] = tuple(_chosen(operator, operation, backend, x) for operation in operations)
    return found


def _chosen(operator: str, operation: str, backend: str | None, x: Any) -> Kernel:
    room, backends = TABLE[operation]
    try:
        choice = explain_backend(x, backend=backend)
        require_usable(choice.backend)
        if x is not None and choice.backend != "cuda":
            raise BackendUnavailableError(
                f"backend {choice.backend!r} ({choice.reason}) takes arrays in CPU memory, and {type(x).__name__} "
                f"lies on a CUDA device; copy it to the host, or leave the choice to npdwconv"
            )
        if choice.backend not in backends:
            raise BackendUnavailableError(
                f"backend {choice.backend!r} ({choice.reason}) has no {operation}; it exists on {', '.join(backends)}"
            )
    except (OptionError, BackendUnavailableError) as error:
        raise type(error)(f"{operator}: {error}") from None
    loaded: Kernel = getattr(import_module(f"{ROOMS[choice.backend]}.{room}"), operation)
    return loaded


def backend_status() -> dict[str, str | None]:
    """Each backend, and why it cannot be used here; None where it can.

    >>> import npdwconv
    >>> npdwconv.backend_status()["reference"] is None
    True
    """
    return {name: unusable(name) for name in BACKENDS}


def require_usable(name: str) -> None:
    """Raise BackendUnavailableError, with the reason, where backend ``name`` cannot be used here."""
    reason = unusable(name)
    if reason is not None:
        usable = [other for other in BACKENDS if unusable(other) is None]
        raise BackendUnavailableError(f"backend {name!r} cannot be used: {reason}; usable here: {', '.join(usable)}")


def unusable(name: str) -> str | None:
    """Why backend ``name`` cannot be used here, or None."""
    if not any(name in backends for _, backends in TABLE.values()):
        return "this version of npdwconv has no kernels for it"
    if name == "reference":
        return None
    return _numba_missing() if name == "numba" else presence.missing()


@cache
def _numba_missing() -> str | None:
    from importlib.metadata import version  # not with this package: it takes 40 ms, and numba needs it anyway

    if find_spec("numba") is None:
        return "the package numba is not installed (pip install numba)"
    found = version("numba")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < _OLDEST_NUMBA:
        return f"numba {found} is too old (pip install 'numba>={'.'.join(map(str, _OLDEST_NUMBA))}')"
    disabled = os.environ.get("NUMBA_DISABLE_JIT", "0")
    if disabled not in ("", "0"):
        return f"NUMBA_DISABLE_JIT={disabled} is set, and its kernels exist as compiled code only (unset it)"
    return None
