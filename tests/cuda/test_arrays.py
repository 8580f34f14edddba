"""Device arrays as operators take and return them: no copies, no mixing, views, `out=`, streams, other packages."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from cuda_calls import ByDlpack, Foreign, both_layouts, core, needs_cuda, on_device, on_host, strided
from kernels.situations import Situation, mismatch
from strategies import same_bits

import npdwconv
from npdwconv import BackendUnavailableError, DTypeError, OptionError, ShapeError, use_backend
from npdwconv.device import DeviceArray, to_device, use_stream
from npdwconv.device import on_device as lies_on_device
from npdwconv.kernels.cuda import provider

pytestmark = needs_cuda


@pytest.fixture(autouse=True)
def _no_backend_named(monkeypatch):
    monkeypatch.delenv("NPDWCONV_BACKEND")


def numbers(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return numbers(1, 2, 3, 4), numbers(2, 1, 3, 3, seed=1), numbers(2, seed=2)


def conv(x, weight, bias=None, **options):
    return npdwconv.depthwise_conv2d(x, weight, bias, padding=1, **options)


def wanted() -> np.ndarray:
    return conv(*operands(), backend="reference")


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
    with pytest.raises(DTypeError, match="grad_out lies in CPU memory, bias lies on a CUDA device"):
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


# views


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
        assert view.strides == host[key].strides
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
