"""Device room: arrays in the memory of a CUDA device, as operators take and return them.

`DeviceArray` offers ``__cuda_array_interface__`` (version 3) and DLPack, so that CuPy, PyTorch and JAX take it without
a copy; theirs are taken the same way. Nothing here waits for the device but `DeviceArray.copy_to_host` and `to_device`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from math import prod
from typing import Any

import numpy as np

from npdwconv import presence
from npdwconv.errors import BackendUnavailableError, DTypeError, OptionError
from npdwconv.layouts import Array
from npdwconv.precision import is_supported


class DeviceArray:
    """An array in device memory: what an operator returns where its operands are such arrays.

    It shares memory with what it was made from, and keeps it alive. ``shape``, ``dtype``, ``strides`` (in bytes),
    ``ndim``, ``size`` and ``nbytes`` are as NumPy's; indexing with slices, ints and None gives views.

    >>> from npdwconv.device import DeviceArray
    >>> DeviceArray.__name__
    'DeviceArray'
    """

    __slots__ = ("_owner", "_strides", "address", "dtype", "shape", "stream", "writable")

    def __init__(
        self,
        owner: Any,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        strides: tuple[int, ...] | None = None,
        stream: int = 1,
        writable: bool = True,
    ) -> None:
        self._owner, self.address, self.shape, self.dtype = owner, address, shape, dtype
        dense = strides is None or _is_dense(shape, strides, dtype.itemsize)
        self._strides = None if dense else strides
        self.stream, self.writable = stream, writable

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return _dense_strides(self.shape, self.dtype.itemsize) if self._strides is None else self._strides

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after the other, in C order."""
        return self._strides is None or not self.size

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> DeviceArray:
        """A new array on the same device and stream."""
        return _new(tuple(shape), self.dtype if dtype is None else np.dtype(dtype), self.stream)

    def dense(self) -> DeviceArray:
        """This array where it is contiguous, else a copy that is."""
        if self.contiguous:
            return self
        return self.empty(self.shape).assign(self)

    def astype(self, dtype: Any, copy: bool = True) -> DeviceArray:
        """This array in another dtype."""
        if self.dtype == dtype and not copy:
            return self
        return self.empty(self.shape, dtype).assign(self)

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view of another shape; a copy where this array is not contiguous."""
        asked = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if -1 in asked:
            known = prod(extent for extent in asked if extent != -1)
            if asked.count(-1) > 1 or not known:
                raise ValueError(f"an array of shape {self.shape} cannot become {asked}")
            asked = tuple(self.size // known if extent == -1 else extent for extent in asked)
        if prod(asked) != self.size:
            raise ValueError(f"an array of shape {self.shape} cannot become {asked}")
        steps = None if self.contiguous else _split(self.shape, self.strides, asked)
        if steps is not None:
            return DeviceArray(self._owner, self.address, asked, self.dtype, steps, self.stream, self.writable)
        flat = self.dense()
        return DeviceArray(flat._owner, flat.address, asked, self.dtype, None, self.stream, self.writable)

    def __getitem__(self, key: Any) -> DeviceArray:
        if self._strides is None and type(key) is tuple and key == _SECOND and self.ndim > 1 and self.shape[1] == 1:
            shape = self.shape[:1] + self.shape[2:]  # a depthwise weight's only input channel, asked for in every call
            return DeviceArray(self._owner, self.address, shape, self.dtype, None, self.stream, self.writable)
        return self._viewed(lambda phantom: phantom[key])

    def swapaxes(self, one: int, other: int) -> DeviceArray:
        """A view with two axes exchanged."""
        return self._viewed(lambda phantom: phantom.swapaxes(one, other))

    def _viewed(self, view: Any) -> DeviceArray:
        """The view that NumPy makes of an array with these strides."""
        base = np.empty(1, self.dtype)
        phantom = np.lib.stride_tricks.as_strided(base, self.shape, self.strides, writeable=False)
        seen = view(phantom)
        if not isinstance(seen, np.ndarray):
            raise OptionError("a DeviceArray has no elements for the host; use copy_to_host()")
        offset = seen.__array_interface__["data"][0] - base.__array_interface__["data"][0] if seen.size else 0
        return DeviceArray(
            self._owner, self.address + offset, seen.shape, self.dtype, seen.strides, self.stream, self.writable
        )

    def assign(self, source: DeviceArray, *, adds: bool = False) -> DeviceArray:
        """This array, with the elements of another of its shape written to it, or added; any dtypes and strides."""
        _copies().copy(source, self, adds=adds)
        return self

    def bounds(self) -> tuple[int, int]:
        """The addresses from the lowest element to beyond the highest."""
        spans = [step * (extent - 1) for step, extent in zip(self.strides, self.shape, strict=True) if extent]
        low = sum(span for span in spans if span < 0)
        return self.address + low, self.address + sum(span for span in spans if span > 0) + self.itemsize

    def clear(self) -> DeviceArray:
        """This contiguous array, set to zero."""
        _provider().clear(self.address, self.nbytes, self.stream)
        return self

    def copy_to_host(self) -> Array:
        """A NumPy array of the same shape, after all that the stream was given is done."""
        flat = self.dense()
        host = np.empty(self.shape, self.dtype)
        _provider().to_host(host, flat.address, self.stream)
        return host

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of Numba's protocol; bfloat16 has no type string in it, so it goes by DLPack."""
        if self.dtype.kind != "f":
            raise AttributeError(f"__cuda_array_interface__ has no {self.dtype}; use DLPack")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, not self.writable),
            "strides": self._strides,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_KDLCUDA, _provider().device_of(self.address))

    def __dlpack__(self, *, stream: Any = None, **others: Any) -> Any:
        if stream is not None and stream != -1:
            _provider().wait_for(int(stream), self.stream)
        return _dlpack().capsule(self)


_KDLCUDA = 2  # of dlpack.h
_SECOND = (slice(None), 0)


def on_device(x: Any) -> bool:
    """Whether an array lies on a CUDA device, by its own protocols."""
    if type(x) is DeviceArray:
        return True
    if hasattr(x, "__dlpack_device__"):
        return int(x.__dlpack_device__()[0]) in (_KDLCUDA, 13)  # and kDLCUDAManaged
    return hasattr(x, "__cuda_array_interface__")


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether elements lie one after the other; the stride of an axis with one element says nothing."""
    needed = _dense_strides(shape, itemsize)
    return all(extent == 1 or step == need for extent, step, need in zip(shape, strides, needed, strict=True))


def _dense_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def _split(shape: tuple[int, ...], strides: tuple[int, ...], asked: tuple[int, ...]) -> tuple[int, ...] | None:
    """The strides of a shape that splits axes of another, or None where it does something else."""
    steps: list[int] = []
    rest = list(asked)
    for extent, stride in zip(shape, strides, strict=True):
        parts: list[int] = []
        while rest and prod(parts) * rest[0] <= extent and (not parts or prod(parts) < extent):
            parts.append(rest.pop(0))
        if prod(parts) != extent or not parts:
            return None
        steps += [stride * prod(parts[place + 1 :]) for place in range(len(parts))]
    return None if rest else tuple(steps)


def _provider() -> Any:
    return import_module("npdwconv.kernels.cuda.provider")


def _copies() -> Any:
    return import_module("npdwconv.kernels.cuda.copies")


def _dlpack() -> Any:
    return import_module("npdwconv.kernels.cuda.dlpack")


def _new(shape: tuple[int, ...], dtype: np.dtype[Any], stream: int) -> DeviceArray:
    memory = _provider().Memory(prod(shape) * dtype.itemsize, stream)
    return DeviceArray(memory, memory.address, shape, dtype, None, stream)


def to_device(array: Any, *, stream: int | None = None) -> DeviceArray:
    """A copy of a NumPy array on the current CUDA device.

    Args:
        array: of any shape; float16, bfloat16, float32 or float64.
        stream: a ``CUstream`` as an int; None for that of `use_stream`, or else the legacy default stream.

    Raises:
        BackendUnavailableError: CUDA cannot be used here; the message says what is missing.
        DTypeError: the dtype is none that operators compute in.

    >>> import numpy as np
    >>> from npdwconv.device import to_device
    >>> from npdwconv.dispatch import backend_status
    >>> if backend_status()["cuda"] is None:
    ...     assert to_device(np.ones(3, dtype=np.float32)).shape == (3,)
    """
    missing = presence.missing()
    if missing is not None:
        raise BackendUnavailableError(f"to_device: backend 'cuda' cannot be used: {missing}")
    host = np.ascontiguousarray(array)
    if not is_supported(host.dtype):
        raise DTypeError(f"array has dtype {host.dtype}; needed float16, bfloat16, float32 or float64")
    chosen = _provider().asked_stream() if stream is None else stream
    made = _new(np.shape(array), host.dtype, _provider().LEGACY if chosen is None else int(chosen))
    _provider().to_device(made.address, host, made.stream)
    return made


@contextmanager
def use_stream(stream: int) -> Iterator[None]:
    """Calls inside that take device arrays run on ``stream``, after what their operands' streams were given so far.

    Args:
        stream: a ``CUstream`` as an int: ``torch.cuda.current_stream().cuda_stream``, ``cupy.cuda.Stream().ptr``.

    Outside, the stream is that of the first operand that names one (``__cuda_array_interface__`` version 3), or else
    the legacy default stream. The host never waits.

    >>> from npdwconv.device import use_stream
    >>> with use_stream(1):  # the legacy default stream
    ...     pass
    """
    if isinstance(stream, bool) or not isinstance(stream, (int, np.integer)):
        raise OptionError(f"stream is {stream!r}; needed a CUstream as an int")
    with _provider().use_stream(int(stream) or _provider().LEGACY):
        yield


def adopted(name: str, value: Any) -> DeviceArray:
    """A device array of another package's as ours, without a copy, on the stream that the call takes."""
    asked = _provider().asked_stream()
    ours = value if type(value) is DeviceArray else None
    found = ours or _by_interface(name, value) or _dlpack().adopted(name, value, asked)
    if asked is not None and asked != found.stream:
        _provider().wait_for(asked, found.stream)
        found = DeviceArray(found._owner, found.address, found.shape, found.dtype, found.strides, asked, found.writable)
    return found


def _by_interface(name: str, value: Any) -> DeviceArray | None:
    """By ``__cuda_array_interface__``; None where the array has none, or a dtype that it cannot say."""
    try:
        face = value.__cuda_array_interface__
        kind, shape = str(face["typestr"]), tuple(int(extent) for extent in face["shape"])
        (address, readonly), strides = face["data"], face.get("strides")
        stream = face.get("stream")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if hasattr(value, "__dlpack__"):
            return None
        raise DTypeError(
            f"{name} is a {type(value).__name__} whose __cuda_array_interface__ cannot be read: {error}"
        ) from error
    if kind[1:2] == "V":
        return None
    dtype = np.dtype(kind)
    steps = None if strides is None else tuple(int(step) for step in strides)
    return DeviceArray(value, int(address), shape, dtype, steps, int(stream) if stream else 1, not readonly)
