"""Views and copies of device arrays, as NumPy would make them."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_calls import needs_cuda, numbers
from strategies import same_bits

from npdwconv import OptionError
from npdwconv.device import on_device as lies_on_device
from npdwconv.device import to_device

pytestmark = needs_cuda


VIEWS = [
    np.s_[1],
    np.s_[-1],
    np.s_[:, 1:],
    np.s_[::-1, :, ::2],
    np.s_[..., None, 1],
    np.s_[None],
    np.s_[1:1],
    np.s_[:, ::-2, 3:0:-1],
    np.s_[...],
]


@pytest.mark.parametrize("key", VIEWS, ids=str)
def test_indexing_gives_views(key):
    host = numbers(2, 3, 5)
    array = to_device(host)
    view = array[key]
    assert view.shape == host[key].shape
    assert same_bits(view.copy_to_host(), host[key].copy())
    assert view._owner is array._owner
    assert (view.ndim, view.size, view.nbytes) == (host[key].ndim, host[key].size, host[key].nbytes)
    if view.size:
        pairs = zip(view.shape, view.strides, host[key].strides, strict=True)
        assert all(ours == theirs for extent, ours, theirs in pairs if extent > 1)
        offset = host[key].__array_interface__["data"][0] - host.__array_interface__["data"][0]
        assert view.address - array.address == offset


def test_what_is_no_view_is_refused():
    array = to_device(numbers(2, 3))
    with pytest.raises(OptionError, match=r"no elements for the host; use copy_to_host\(\)"):
        array[0, 0]
    for key in (2, (0, 0, 0), "a"):
        with pytest.raises(IndexError):
            array[key]
    with pytest.raises(ValueError, match=r"\(2, 3\) cannot become \(4,\)"):
        array.reshape(4)


@pytest.mark.parametrize("key", [np.s_[...], np.s_[:, :, :2], np.s_[:, ::-1], np.s_[1:], np.s_[:0]], ids=str)
@pytest.mark.parametrize("shape", [(-1,), (2, 3, -1), (-1, 1), (1, -1, 2)], ids=str)
def test_reshapes(key, shape):
    host = numbers(2, 6, 4)[key]
    array = to_device(numbers(2, 6, 4))[key]
    if host.size == 0 and host.shape[0] == 0:
        shape = (0, *shape[1:-1], 4)
    try:
        want = host.reshape(shape)
    except ValueError:
        with pytest.raises(ValueError, match="cannot become"):
            array.reshape(shape)
        return
    assert same_bits(array.reshape(shape).copy_to_host(), want.copy())
    assert same_bits(array.reshape(*shape).copy_to_host(), want.copy())
    if host.flags.c_contiguous:
        assert array.reshape(shape)._owner is array._owner


def test_other_views_and_copies():
    host = numbers(2, 3, 4)
    array = to_device(host)
    turned = array.swapaxes(0, 2)
    assert turned._owner is array._owner
    assert not turned.contiguous
    assert same_bits(turned.copy_to_host(), host.swapaxes(0, 2).copy())
    assert same_bits(turned.dense().copy_to_host(), host.swapaxes(0, 2).copy())
    assert array.dense() is array
    assert array.astype(np.float32, copy=False) is array
    assert same_bits(array.astype(np.float64).copy_to_host(), host.astype(np.float64))
    assert same_bits(turned.astype(np.float16).copy_to_host(), host.swapaxes(0, 2).astype(np.float16))
    assert (len(array), repr(array)) == (2, "DeviceArray(shape=(2, 3, 4), dtype=float32)")
    array[0].assign(array[1])
    assert same_bits(array.copy_to_host(), host[[1, 1]])
    array[:, ::2].assign(array[:, ::2], adds=True)
    host = host[[1, 1]]
    host[:, ::2] *= 2
    assert same_bits(array.copy_to_host(), host)
    assert not array.clear().copy_to_host().any()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 2, 3, 2, 2, 2)], ids=str)
def test_there_and_back(shape):
    host = numbers(*shape)
    there = to_device(host)
    assert there.shape == shape
    assert same_bits(there.copy_to_host(), host)
    backwards = to_device(np.flip(host))
    assert same_bits(backwards.copy_to_host(), np.flip(host).copy())
    assert not lies_on_device(host)
