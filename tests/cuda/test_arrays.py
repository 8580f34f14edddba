"""Device arrays as operators take and return them: where results lie, strides, `out=`, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_calls import (
    Foreign,
    conv,
    core,
    needs_cuda,
    numbers,
    on_device,
    on_host,
    operands,
    strided,
    wanted,
)
from kernels.situations import Situation, both_layouts, mismatch
from strategies import same_bits

import npdwconv
from npdwconv import BackendUnavailableError, DTypeError, OptionError, ShapeError, use_backend
from npdwconv.device import DeviceArray, to_device

pytestmark = needs_cuda


@pytest.fixture(autouse=True)
def _no_backend_named(monkeypatch):
    monkeypatch.delenv("NPDWCONV_BACKEND")


# where results lie


@both_layouts(*core(), turns=True)
def test_results_lie_where_operands_do(s: Situation, layout: str):
    host = s.operands("integers", layout)
    behind = s.gradients(s.forward(host, "reference", layout), "integers")
    want = s.both(host, behind, "reference", layout)
    there, back = on_device(host), on_device(behind)
    found = s.both(there, back, None, layout)
    assert {type(array) for array in found.values()} == {DeviceArray}
    assert all(array.contiguous and array.writable for array in found.values())
    assert not mismatch(on_host(found), want)
    assert all(same_bits(array.copy_to_host(), host[name]) for name, array in there.items()), "an operand was changed"
    assert all(same_bits(array.copy_to_host(), behind[name]) for name, array in back.items())
    given = [array.bounds() for array in (*there.values(), *back.values())]
    for array in found.values():
        first, last = array.bounds()
        assert not any(first < end and begin < last for begin, end in given), "a result lies in an operand's memory"


def test_numpy_arrays_come_back_as_numpy_arrays():
    found = conv(*operands(), backend="cuda")
    assert type(found) is np.ndarray
    assert found.flags.c_contiguous
    assert same_bits(found, wanted())
    with use_backend("cuda"):
        assert same_bits(conv(*operands()), wanted())


def test_tokens_and_a_causal_state_stay_on_the_device():
    x, weight = numbers(1, 6, 2), numbers(2, 1, 3, 3, seed=1)
    found = npdwconv.depthwise_conv_tokens(to_device(x), to_device(weight), grid=(2, 3))
    want = npdwconv.depthwise_conv_tokens(x, weight, grid=(2, 3), backend="reference")
    assert same_bits(found.copy_to_host(), want)
    x, weight, state = numbers(1, 2, 4), numbers(2, 1, 3, seed=1), numbers(1, 2, 2, seed=2)
    out, later = npdwconv.causal_depthwise_conv1d(to_device(x), to_device(weight), state=to_device(state))
    want, kept = npdwconv.causal_depthwise_conv1d(x, weight, state=state, backend="reference")
    assert same_bits(out.copy_to_host(), want)
    assert same_bits(later.copy_to_host(), kept)


# operands and out of any strides


@both_layouts(*core(), turns=True)
def test_strides(s: Situation, layout: str):
    host = s.operands("integers", layout)
    behind = s.gradients(s.forward(host, "reference", layout), "integers")
    there, back = ({name: strided(array) for name, array in group.items()} for group in (host, behind))
    found = on_host(s.both(there, back, "cuda", layout))
    assert not mismatch(found, s.both(host, behind, "reference", layout))
    assert all(same_bits(array.copy_to_host(), host[name]) for name, array in there.items())
    numpys = ({name: np.flip(np.flip(array).copy()) for name, array in group.items()} for group in (host, behind))
    assert not mismatch(s.both(*numpys, "cuda", layout), s.both(host, behind, "reference", layout))


@pytest.mark.parametrize("make", [to_device, strided, lambda array: strided(array)[..., ::-1]])
def test_out_on_the_device(make):
    out = make(np.full_like(wanted(), 7.0))
    whole = out._owner
    assert conv(*map(to_device, operands()), out=out) is out
    assert same_bits(out.copy_to_host(), wanted())
    assert out._owner is whole


def test_out_leaves_what_lies_between_its_elements():
    wide = to_device(np.full((1, 2, 6, 9), 7.0, np.float32))
    out = wide[:, :, ::2, 1::2]
    assert conv(*map(to_device, operands()), out=out) is out
    host = wide.copy_to_host()
    assert same_bits(host[:, :, ::2, 1::2].copy(), wanted())
    host[:, :, ::2, 1::2] = 7.0
    assert (host == 7.0).all()


def test_out_of_another_package_is_returned_itself():
    out = to_device(np.zeros_like(wanted()))
    foreign = Foreign(out)
    assert conv(*map(to_device, operands()), out=foreign) is foreign
    assert same_bits(out.copy_to_host(), wanted())


def test_out_on_the_host():
    out = np.full((1, 2, 6, 9), 7.0, np.float32)
    view = out[:, :, ::2, 1::2]
    assert conv(*operands(), out=view, backend="cuda") is view
    assert same_bits(view.copy(), wanted())
    view[...] = 7.0
    assert (out == 7.0).all()


# wrong calls


def of_the_device(**changes):
    return Foreign(to_device(np.zeros((1, 2, 3, 4), np.float32)), **changes)


WRONG = {
    "dtype": (lambda x: to_device(np.zeros((1, 2, 3, 4))), DTypeError, "out has dtype float64; needed float32"),
    "shape": (lambda x: to_device(np.zeros((1, 2, 3, 5), np.float32)), ShapeError, r"out has shape \(1, 2, 3, 5\)"),
    "rank": (lambda x: to_device(np.zeros(24, np.float32)), ShapeError, r"out has shape \(24,\)"),
    "place": (lambda x: np.zeros((1, 2, 3, 4), np.float32), DTypeError, "out is a ndarray; needed an array on the dev"),
    "nothing": (lambda x: [0.0], DTypeError, "out is a list; needed an array on the device"),
    "operand": (lambda x: x, OptionError, "out shares memory with x; needed memory of its own"),
    "overlap": (lambda x: x[:, ::-1], OptionError, "out shares memory with x"),
    "in itself": (lambda x: of_the_device(strides=(0, 16, 4, 4)), OptionError, "out has elements that share memory"),
}
WRONG["read-only"] = (
    lambda x: of_the_device(data=(to_device(np.zeros(24, np.float32)).address, True)),
    OptionError,
    "out is read-only",
)


@pytest.mark.parametrize("what", list(WRONG))
def test_an_out_that_cannot_be_written(what: str):
    make, error, message = WRONG[what]
    x, weight, bias = map(to_device, operands())
    with pytest.raises(error, match=f"depthwise_conv2d: {message}"):
        conv(x, weight, bias, out=make(x))
    assert same_bits(x.copy_to_host(), operands()[0])


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1)])
def test_operands_in_two_places_are_refused(which: tuple[int, ...]):
    mixed = [to_device(array) if place in which else array for place, array in enumerate(operands())]
    with pytest.raises(DTypeError, match=r"lies (on a CUDA device|in CPU memory), .*needed all operands in one place"):
        conv(*mixed)
    x, weight, _ = operands()
    with pytest.raises(DTypeError, match="grad_out lies in CPU memory, x lies on a CUDA device"):
        npdwconv.depthwise_conv2d_backward(wanted(), *map(to_device, operands()), padding=1)
    with pytest.raises(DTypeError, match="weight lies in CPU memory, grad_out lies on a CUDA device"):
        npdwconv.depthwise_conv2d_input_grad(to_device(wanted()), weight, x.shape, padding=1)


def test_a_host_backend_refuses_device_arrays():
    for backend in ("reference", "numba"):
        message = f"backend '{backend}' .*takes arrays in CPU memory, and DeviceArray lies on a CUDA device"
        with pytest.raises(BackendUnavailableError, match=message):
            conv(*map(to_device, operands()), backend=backend)
        with use_backend(backend), pytest.raises(BackendUnavailableError, match=message):
            conv(*map(to_device, operands()))


def test_an_operation_that_the_backend_lacks():
    from npdwconv.dispatch import kernel

    with pytest.raises(BackendUnavailableError, match=r"forward: backend 'cuda' .* has no network; it exists on numba"):
        kernel("forward", "network", "cuda")


def test_dtypes_that_differ_or_are_none_of_ours():
    x, weight, _ = operands()
    with pytest.raises(DTypeError, match="weight has dtype float64, x has float32"):
        conv(to_device(x), to_device(weight.astype("f8")))
    with pytest.raises(DTypeError, match="array has dtype int64; needed float16"):
        to_device(np.arange(3))
    raw = to_device(x)
    with pytest.raises(DTypeError, match="x has dtype int32; needed one of float16"):
        conv(Foreign(raw, typestr="<i4"), to_device(weight))
    with pytest.raises(DTypeError, match="cannot be read"):
        conv(Foreign(raw, shape=None), to_device(weight))
