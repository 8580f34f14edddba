"""DLPack for device arrays: capsules given and taken (dlpack.h, version 0.8: ``DLManagedTensor``)."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from npdwconv.device import DeviceArray
from npdwconv.errors import DTypeError
from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.words import rounded

_FLOAT, _BFLOAT, _CUDA = 2, 4, 2  # kDLFloat, kDLBfloat, kDLCUDA
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_api = ctypes.pythonapi
_destructor_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_IsValid.restype = ctypes.c_int
_api.PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
_raw = ctypes.PyDLL(None)
_raw.PyCapsule_IsValid.restype = ctypes.c_int
_raw.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_raw.PyCapsule_GetPointer.restype = ctypes.c_void_p
_raw.PyCapsule_GetPointer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)

_given: dict[int, Any] = {}  # what a consumer holds, by the address of its description


@_Deleter
def _released(managed: Any) -> None:
    _given.pop(ctypes.addressof(managed.contents), None)


@_destructor_type
def _forgotten(capsule: int) -> None:
    """A capsule that nobody took: its name is still the first one."""
    if _raw.PyCapsule_IsValid(capsule, _NAME):
        _given.pop(_raw.PyCapsule_GetPointer(capsule, _NAME), None)


def capsule(array: DeviceArray) -> Any:
    """A capsule that shares an array's memory and keeps it alive."""
    count = array.ndim
    shape = (ctypes.c_int64 * count)(*array.shape)
    strides = (ctypes.c_int64 * count)(*(step // array.itemsize for step in array.strides))
    code = _FLOAT if array.dtype.kind == "f" else _BFLOAT
    kind, number = array.__dlpack_device__()
    managed = _Managed()
    managed.tensor = _Tensor(array.address, kind, number, count, code, 8 * array.itemsize, 1, shape, strides, 0)
    managed.deleter = _released
    place = ctypes.addressof(managed)
    _given[place] = (managed, array, shape, strides)
    return _api.PyCapsule_New(place, _NAME, ctypes.cast(_forgotten, ctypes.c_void_p))


class _Taken:
    """Another package's memory, given back to it when nothing refers to it."""

    def __init__(self, managed: Any, source: Any) -> None:
        self.managed, self.source = managed, source

    def __del__(self) -> None:
        if self.managed.deleter:
            self.managed.deleter(ctypes.pointer(self.managed))


def adopted(name: str, value: Any, stream: int | None) -> DeviceArray:
    """Another package's device array as ours, by DLPack: the producer makes ``stream`` wait for its own work."""
    ours = provider.LEGACY if stream is None else stream
    try:
        taken = value.__dlpack__(stream=ours)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DTypeError(f"{name} is a {type(value).__name__} that gave no DLPack capsule: {error}") from error
    if not _api.PyCapsule_IsValid(taken, _NAME):
        raise DTypeError(f"{name} is a {type(value).__name__} whose DLPack capsule is not a {_NAME.decode()}")
    managed = _Managed.from_address(_api.PyCapsule_GetPointer(taken, _NAME))
    _api.PyCapsule_SetName(taken, _USED)
    tensor, owner = managed.tensor, _Taken(managed, taken)
    bits = int(tensor.bits)
    if tensor.lanes != 1 or tensor.code not in (_FLOAT, _BFLOAT) or bits not in (16, 32, 64):
        raise DTypeError(
            f"{name} has DLPack type (code {tensor.code}, {bits} bits, {tensor.lanes} lanes); "
            f"needed float16, bfloat16, float32 or float64"
        )
    dtype = rounded("bfloat16") if tensor.code == _BFLOAT else np.dtype(f"f{bits // 8}")
    shape = tuple(int(tensor.shape[place]) for place in range(tensor.ndim))
    steps = None
    if tensor.strides:
        steps = tuple(int(tensor.strides[place]) * dtype.itemsize for place in range(tensor.ndim))
    return DeviceArray(owner, int(tensor.data or 0) + int(tensor.byte_offset), shape, dtype, steps, ours)
