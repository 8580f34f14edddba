"""Other packages' arrays, taken and given: the CUDA array interface, DLPack, streams."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from cuda_calls import ByDlpack, Foreign, conv, needs_cuda, numbers, operands, strided, wanted
from strategies import same_bits

from npdwconv import DTypeError, OptionError
from npdwconv.device import DeviceArray, to_device, use_stream
from npdwconv.device import on_device as lies_on_device
from npdwconv.kernels.cuda import provider

pytestmark = needs_cuda


@pytest.fixture(autouse=True)
def _no_backend_named(monkeypatch):
    monkeypatch.delenv("NPDWCONV_BACKEND")


# other packages' arrays


@pytest.mark.parametrize("wrap", [Foreign, ByDlpack])
def test_arrays_of_other_packages_are_taken(wrap):
    found = conv(*(wrap(to_device(array)) for array in operands()))
    assert type(found) is DeviceArray
    assert same_bits(found.copy_to_host(), wanted())
    x, weight, bias = operands()
    moved = conv(wrap(strided(x)), wrap(strided(weight)), wrap(to_device(bias)))
    assert same_bits(moved.copy_to_host(), wanted())


def test_an_array_is_taken_without_a_copy():
    from npdwconv.device import adopted

    array = strided(operands()[0])
    for wrap in (Foreign, ByDlpack):
        taken = adopted("x", wrap(array))
        assert (taken.address, taken.shape, taken.strides) == (array.address, array.shape, array.strides)
        assert taken.dtype == array.dtype
    read_only = adopted("x", Foreign(array, data=(array.address, True)))
    assert not read_only.writable
    assert same_bits(conv(read_only, *map(to_device, operands()[1:])).copy_to_host(), wanted())


def test_a_result_is_what_other_packages_take():
    found = conv(*map(to_device, operands()))
    face = found.__cuda_array_interface__
    assert (face["version"], face["shape"], face["typestr"]) == (3, (1, 2, 3, 4), "<f4")
    assert face["data"] == (found.address, False)
    assert face["strides"] is None
    assert face["stream"] == provider.LEGACY
    assert found[..., ::2].__cuda_array_interface__["strides"] == (96, 48, 16, 8)
    assert found.__dlpack_device__() == (2, 0)
    assert lies_on_device(found)


def test_a_dtype_that_has_no_type_string_goes_by_dlpack():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16")
    x, weight = (to_device(array.astype(ml_dtypes.bfloat16)) for array in operands()[:2])
    with pytest.raises(AttributeError, match="no bfloat16; use DLPack"):
        _ = x.__cuda_array_interface__
    assert not hasattr(x, "__cuda_array_interface__")
    found = conv(ByDlpack(x), ByDlpack(weight))
    assert found.dtype == ml_dtypes.bfloat16
    assert np.array_equal(found.copy_to_host(), conv(*operands()[:2], backend="reference").astype(ml_dtypes.bfloat16))


# DLPack


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_capsule_is_given_and_taken(dtype: str):
    from npdwconv.kernels.cuda import dlpack

    first = strided(numbers(2, 3, 4, dtype=dtype))
    held = weakref.ref(first._owner)
    before = len(dlpack._given)
    second = dlpack.adopted("x", first, None)
    assert len(dlpack._given) == before + 1
    assert (second.address, second.shape, second.strides, second.dtype) == (
        first.address,
        first.shape,
        first.strides,
        first.dtype,
    )
    del first
    gc.collect()
    assert held() is not None, "the memory is gone while another array has it"
    assert same_bits(second.copy_to_host(), numbers(2, 3, 4, dtype=dtype))
    third = second[1:]
    del second
    gc.collect()
    assert same_bits(third.copy_to_host(), numbers(2, 3, 4, dtype=dtype)[1:])
    del third
    gc.collect()
    assert held() is None, "the memory was not given back"
    assert len(dlpack._given) == before


def test_a_capsule_that_nobody_takes_gives_the_memory_back():
    from npdwconv.kernels.cuda import dlpack

    array = to_device(numbers(3))
    gc.collect()  # what other tests let go
    held, before = weakref.ref(array._owner), len(dlpack._given)
    capsule = array.__dlpack__()
    del array
    gc.collect()
    assert held() is not None
    del capsule
    gc.collect()
    assert held() is None
    assert len(dlpack._given) == before


class Gives(ByDlpack):
    """A producer that hands over what it was told to."""

    def __init__(self, gift) -> None:
        super().__init__(to_device(numbers(3)))
        self.gift = gift

    def __dlpack__(self, *, stream=None):
        if isinstance(self.gift, Exception):
            raise self.gift
        return self.gift


def test_capsules_that_cannot_be_taken():
    from npdwconv.kernels.cuda import dlpack

    x = to_device(operands()[0])
    used = x.__dlpack__()
    assert dlpack.adopted("x", Gives(used), None).shape == x.shape
    for gift, message in (
        (used, "not a dltensor"),
        (3, "not a dltensor"),
        (BufferError("no"), "no DLPack capsule: no"),
    ):
        with pytest.raises(DTypeError, match=f"x is a Gives .*{message}"):
            conv(Gives(gift), *map(to_device, operands()[1:]))


# streams


def test_results_lie_on_the_stream_of_a_call(monkeypatch):
    waited = []
    real = provider.wait_for
    monkeypatch.setattr(provider, "wait_for", lambda stream, other: waited.append((stream, other)))
    if not provider.simulated():
        monkeypatch.setattr(provider, "wait_for", lambda *pair: (waited.append(pair), real(*pair)))
    other = 2  # the driver's own number of the stream that is each thread's
    arrays = [to_device(array) for array in operands()]
    with use_stream(other):
        inside = conv(*arrays)
        assert inside.stream == other
        assert to_device(operands()[0]).stream == other
    assert waited
    assert set(waited) == {(other, provider.LEGACY)}
    waited.clear()
    outside = conv(*map(to_device, operands()))
    assert (outside.stream, waited) == (provider.LEGACY, [])
    assert same_bits(inside.copy_to_host(), wanted())
    assert same_bits(outside.copy_to_host(), wanted())


def test_a_stream_is_taken_from_the_interface():
    x, weight, bias = (Foreign(to_device(array, stream=2)) for array in operands())
    assert x.__cuda_array_interface__["stream"] == 2
    assert conv(x, weight, bias).stream == 2
    with use_stream(1):
        assert conv(x, weight, bias).stream == 1


def test_a_producer_by_dlpack_is_told_the_stream():
    x, weight, _ = (ByDlpack(to_device(array)) for array in operands())
    conv(x, weight)
    assert set(x.streams) == {provider.LEGACY}
    with use_stream(2):
        conv(x, weight)
    assert x.streams[-1] == 2


@pytest.mark.parametrize("stream", [None, "1", 1.0, True])
def test_what_is_no_stream(stream):
    with pytest.raises(OptionError, match="needed a CUstream as an int"), use_stream(stream):
        pass
