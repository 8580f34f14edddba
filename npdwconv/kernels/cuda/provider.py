"""The one file that knows which package provides CUDA to Python: numba-cuda, or the simulator in numba.

Kernels are compiled with a signature of plain ints and launched through the driver, because an array argument costs
microseconds a call. Memory comes from a pool of the driver's that is ordered by streams: taking and giving back do not
wait for the device (CUDA driver API, ``cuMemAllocFromPoolAsync``). In the simulator an address is one of the host's.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from npdwconv.kernels.cuda import binaries
from npdwconv.presence import DRIVER
from npdwconv.presence import simulated as simulated  # asked of the provider by the whole room

Extents = tuple[int, int, int]
Launch = Callable[[Extents, Extents, int, Any], None]

_BUFFER_POINTER, _BUFFER_SIZE, _END = 1, 2, 0  # CU_LAUNCH_PARAM_BUFFER_POINTER and the like of cuda.h
ENTRY = "npdwconv"  # a kernel's name in its binary
LEGACY = 1  # the legacy default stream, by the number that __cuda_array_interface__ and DLPack give it

_stream: ContextVar[int | None] = ContextVar("npdwconv_stream", default=None)


@cache
def cuda() -> Any:
    """The module ``numba.cuda``."""
    return import_module("numba.cuda")


def intrinsic() -> Any:
    """The decorator that makes an intrinsic of the device."""
    try:
        return import_module("numba.cuda.extending").intrinsic
    except (ImportError, AttributeError):
        return import_module("numba.core.extending").intrinsic


def typing_error() -> Any:
    """The error by which an intrinsic refuses its arguments' types."""
    try:
        return import_module("numba.cuda.core.errors").TypingError
    except ImportError:
        return import_module("numba.core.errors").TypingError


def types() -> Any:
    """The module of Numba's types for the device."""
    try:
        return import_module("numba.cuda.types")
    except ImportError:
        return import_module("numba.core.types")


class Source(NamedTuple):
    """A kernel written out: its name, the names of its arguments, its text, and what the text refers to.

    ``bounds``: the threads of a block, and blocks that a multiprocessor must have room for; registers are shared out by
    it. None leaves that to the compiler.
    """

    name: str
    arguments: tuple[str, ...]
    text: str
    words: dict[str, Any]
    bounds: tuple[int, int] | None = None

    def function(self) -> Any:
        """The Python function; a traceback shows the text's lines."""
        place = f"<npdwconv {self.name}>"
        linecache.cache[place] = (len(self.text), None, self.text.splitlines(keepends=True), place)
        words = dict(self.words)
        exec(compile(self.text, place, "exec"), words)
        return words[self.name]


def device_function(source: Source) -> Any:
    """A function that kernels call; the simulator calls it as it is."""
    function = source.function()
    return function if simulated() else cuda().jit(function, device=True)


def signature(source: Source) -> Any:
    """Ints alone, of 64 bits."""
    kinds = types()
    return kinds.void(*[kinds.int64] * len(source.arguments))


def ptx_of(source: Source, capability: tuple[int, int]) -> str:
    """The PTX of a kernel for one compute capability, compiled without a device."""
    with _device_of_capability(capability):
        options = {} if source.bounds is None else {"launch_bounds": source.bounds}
        text, _ = cuda().compile_ptx(source.function(), signature(source), cc=capability, **options)
    return str(text)


@contextmanager
def _device_of_capability(capability: tuple[int, int]) -> Iterator[None]:
    """numba-cuda asks the current device how to compile the functions that a kernel calls; inside, it is this one."""
    module: Any = import_module("numba.cuda.dispatcher")
    held = module.get_current_device
    module.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        module.get_current_device = held


class Kernel:
    """A kernel compiled on first use, launched with ints and addresses."""

    def __init__(self, source: Source, description: str) -> None:
        self.source, self.description = source, description
        self._launch: dict[int, Launch] = {}

    def __call__(self, grid: Extents, block: Extents, stream: int, *arguments: Any) -> None:
        """Launch over ``grid`` blocks of ``block`` threads on a stream."""
        device = current_device()
        launch = self._launch.get(device)
        if launch is None:
            launch = self._launch[device] = _launcher(self.source, self.description)
        launch(grid, block, stream, arguments)


def renamed(ptx: str) -> str:
    """PTX whose kernel is called `ENTRY`: a binary may hold other functions, divisions for instance."""
    head = ".visible .entry "
    begin = ptx.index(head) + len(head)
    return ptx.replace(ptx[begin : ptx.index("(", begin)].strip(), ENTRY)


def binary_of(source: Source, capability: tuple[int, int]) -> bytes:
    """A kernel as the driver loads it: compiled to PTX, and that linked for one compute capability."""
    linker: Any = import_module("cuda.bindings.nvjitlink")
    ptx = renamed(ptx_of(source, capability)).encode()
    options = [f"-arch=sm_{capability[0]}{capability[1]}"]
    handle = linker.create(len(options), options)
    try:
        linker.add_data(handle, linker.InputType.PTX, ptx, len(ptx), source.name)
        linker.complete(handle)
        binary = bytearray(linker.get_linked_cubin_size(handle))
        linker.get_linked_cubin(handle, binary)
    finally:
        linker.destroy(handle)
    return bytes(binary)


def _launcher(source: Source, description: str) -> Launch:
    """Launches through the driver, with the arguments packed into one buffer (CUDA driver API, ``cuLaunchKernel``)."""
    if simulated():
        return _simulator(cuda().jit(source.function()))
    driver, capability = _driver(), capability_of_device()
    binary = binaries.stored(description, capability, lambda: binary_of(source, capability))
    module = _check(driver.cuModuleLoadData(binary))
    function = int(_check(driver.cuModuleGetFunction(module, ENTRY.encode())))
    length = len(source.arguments)
    buffers, extras, size = ctypes.c_int64 * length, ctypes.c_void_p * 5, ctypes.c_size_t(8 * length)
    place, call = ctypes.addressof(size), _library().cuLaunchKernel

    def launch(grid: Extents, block: Extents, stream: int, arguments: Any, keep: Any = (module, size)) -> None:
        buffer = buffers(*arguments)
        extra = extras(_BUFFER_POINTER, ctypes.addressof(buffer), _BUFFER_SIZE, place, _END)
        _succeed(call(function, *grid, *block, 0, stream, None, extra))

    return launch


@cache
def _library() -> Any:
    """The driver's own library, for what is called often: each call costs a microsecond or two."""
    library = ctypes.CDLL(DRIVER)
    number, pointer = ctypes.c_uint, ctypes.c_void_p
    library.cuLaunchKernel.argtypes = (pointer, *[number] * 7, pointer, pointer, pointer)
    library.cuMemAllocFromPoolAsync.argtypes = (pointer, ctypes.c_size_t, pointer, pointer)
    library.cuMemFreeAsync.argtypes = (ctypes.c_uint64, pointer)
    return library


def _succeed(status: int) -> None:
    """RuntimeError where the driver answered that a call failed."""
    if status:
        _check((_driver().CUresult(status),))


def _simulator(kernel: Any) -> Launch:
    def launch(grid: Any, block: Any, stream: int, arguments: Any) -> None:
        kernel[grid, block](*arguments)

    return launch


@cache
def _driver() -> Any:
    return import_module("cuda.bindings.driver")


def _check(result: Any) -> Any:
    """What a call of the driver returned, less its status; RuntimeError where that is not success."""
    status, *values = result
    if int(status):
        name = _driver().cuGetErrorName(status)[1]
        raise RuntimeError(f"the CUDA driver answered {name.decode() if name else int(status)}")
    return values[0] if values else None


def current_device() -> int:
    """The number of the current device; its primary context becomes current where none was."""
    if simulated():
        return 0
    number = ctypes.c_int()
    if _library().cuCtxGetDevice(ctypes.byref(number)):
        return int(cuda().current_context().device.id)
    return number.value


def device_of(address: int) -> int:
    """The device whose memory an address is in."""
    if simulated() or not address:
        return 0
    driver = _driver()
    current_device()
    kind = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(_check(driver.cuPointerGetAttribute(kind, address)))


def capability_of_device() -> tuple[int, int]:
    """The compute capability of the current device."""
    major, minor = cuda().current_context().device.compute_capability
    return int(major), int(minor)


def processors() -> int:
    """The number of streaming multiprocessors of the current device."""
    return 2 if simulated() else int(cuda().current_context().device.MULTIPROCESSOR_COUNT)


@cache
def _pool(device: int) -> int:
    driver = _driver()
    properties = driver.CUmemPoolProps()
    properties.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    pool = _check(driver.cuMemPoolCreate(properties))
    threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    _check(driver.cuMemPoolSetAttribute(pool, threshold, driver.cuuint64_t(2**64 - 1)))
    return int(pool)


class Place(NamedTuple):
    """Where an array begins, in the simulator: its elements, flat."""

    elements: Any


def place(address: int, dtype: Any, count: int) -> Any:
    """What a kernel is given for ``count`` elements at an address."""
    if not simulated():
        return address
    return Place(host_view(address, count * dtype.itemsize).view(dtype))


class Memory:
    """Device memory that is given back, in the order of its stream, when nothing refers to it."""

    def __init__(self, size: int, stream: int) -> None:
        self.size, self.stream = size, stream
        if simulated():
            self._host = np.zeros(max(size, 1) + 64, np.uint8)
            self._host[:] = 0xFF  # NaN in every dtype: what a kernel leaves unwritten shows
            self.address = -(-self._host.ctypes.data // 64) * 64
            return
        if not size:
            self.address = 0
            return
        address = ctypes.c_uint64()
        library, pool = _library(), _pool(current_device())
        try:
            _succeed(library.cuMemAllocFromPoolAsync(ctypes.byref(address), size, pool, stream))
        except RuntimeError as error:
            raise MemoryError(f"{size} bytes could not be had on the device: {error}") from None
        self.address = address.value

    def used_on(self, stream: int) -> None:
        """Work on ``stream`` refers to this memory: it comes after what was there, and the memory outlasts it."""
        if stream != self.stream:
            wait_for(stream, self.stream)
            self.stream = stream

    def __del__(self, simulated: Any = simulated, library: Any = _library) -> None:
        if not simulated() and getattr(self, "address", False):
            library().cuMemFreeAsync(self.address, self.stream)


def host_view(address: int, size: int) -> Any:
    """Memory of the host as bytes."""
    return (
        np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)
        if size
        else np.empty(0, np.uint8)
    )


def clear(address: int, size: int, stream: int) -> None:
    """Set bytes of the device's memory to zero."""
    if simulated():
        host_view(address, size)[:] = 0
    elif size:
        _check(_driver().cuMemsetD8Async(address, 0, size, stream))


def to_device(address: int, array: Any, stream: int) -> None:
    """Copy a contiguous array to the device's memory; returns when the array may be changed."""
    if not array.nbytes:
        return
    if simulated():
        host_view(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        return
    _check(_driver().cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, stream))
    _check(_driver().cuStreamSynchronize(stream))


def to_host(array: Any, address: int, stream: int) -> None:
    """Copy the device's memory into a contiguous array, and wait for it."""
    if not array.nbytes:
        return
    if simulated():
        array.reshape(-1).view(np.uint8)[:] = host_view(address, array.nbytes)
        return
    _check(_driver().cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, stream))
    _check(_driver().cuStreamSynchronize(stream))


def wait_for(stream: int, other: int) -> None:
    """What ``stream`` does from now on comes after all that ``other`` was given so far; the host does not wait."""
    if simulated() or stream == other:
        return
    driver = _driver()
    current_device()
    event = _check(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    _check(driver.cuEventRecord(event, other))
    _check(driver.cuStreamWaitEvent(stream, event, 0))
    _check(driver.cuEventDestroy(event))


@contextmanager
def use_stream(stream: Any) -> Iterator[None]:
    """Calls inside on device arrays run on ``stream``; see `npdwconv.device.use_stream`."""
    token = _stream.set(stream)
    try:
        yield
    finally:
        _stream.reset(token)


def asked_stream() -> int | None:
    """The stream of `use_stream`, or None outside it."""
    return _stream.get()
