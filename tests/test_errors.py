"""Every wrong call: its error, what the message names, and that nothing was modified."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from strategies import illegal

import npdwconv as n
from npdwconv import BackendUnavailableError, DTypeError, OptionError, ShapeError, dispatch, presence

Arrays = dict[str, np.ndarray]


def operands() -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"x": (1, 2, 5, 5), "w": (2, 1, 3, 3), "b": (2,), "g": (1, 2, 3, 3), "pw": (4, 2), "line": (1, 2, 6)}
    shapes |= {"w1": (2, 1, 3), "tokens": (1, 6, 2), "vector": (2,), "out": (1, 2, 3, 3)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class Wrong(NamedTuple):
    what: str
    call: Callable[[Any], Any]
    error: type[Exception]
    words: tuple[str, ...]


class Device:
    """An array that says it lies on a GPU."""

    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012 - the protocol's attribute, as devices have it


class ManagedDevice:
    """An array that says by DLPack that it lies in CUDA managed memory (kDLCUDAManaged of dlpack.h)."""

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("memory of another device was asked for")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 13, 0


class Refuses(ManagedDevice):
    """An array in CPU memory that does not hand itself over."""

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("requires grad")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Namespace:
    def __init__(self, arrays: Arrays) -> None:
        self.__dict__.update(arrays)


def conv(**options: Any) -> Callable[[Any], Any]:
    return lambda a: n.depthwise_conv2d(a.x, a.w, a.b, **options)


def into(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda a: n.depthwise_conv2d(a.x, a.w, a.b, out=make(a))


def interleaved(a: Any) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(a.out, (1, 2, 3, 3), (72, 36, 4, 4))


def read_only(a: Any) -> np.ndarray:
    view = a.out.view()
    view.flags.writeable = False
    return view


CASES = [
    # operands
    Wrong("a list", lambda a: n.depthwise_conv2d([[1.0]], a.w), DTypeError, ("x is a list", "DLPack", "asarray")),
    Wrong("None", lambda a: n.depthwise_conv2d(a.x, None), DTypeError, ("weight is a NoneType",)),
    Wrong("masked", lambda a: n.pointwise_conv(np.ma.array(a.x), a.pw), DTypeError, ("x is a masked array", "filled")),
    Wrong(
        "int dtype", lambda a: n.depthwise_conv2d(a.x.astype(int), a.w), DTypeError, ("x has dtype int64", "float16")
    ),
    Wrong("complex", lambda a: n.depthwise_conv2d(a.x + 0j, a.w), DTypeError, ("x has dtype complex64",)),
    Wrong("longdouble", lambda a: n.depthwise_conv2d(a.x.astype("g"), a.w), DTypeError, ("needed one of",)),
    Wrong("byte order", lambda a: n.depthwise_conv2d(a.x.astype(">f4"), a.w), DTypeError, (">f4", "native")),
    Wrong("mixed", lambda a: n.depthwise_conv2d(a.x, a.w.astype("f8")), DTypeError, ("float64", "float32", ".astype")),
    Wrong(
        "rank of x", lambda a: n.depthwise_conv2d(a.line, a.w), ShapeError, ("x has shape (1, 2, 6)", "(N, C, H, W)")
    ),
    Wrong(
        "rank of weight", lambda a: n.depthwise_conv2d(a.x, a.w1), ShapeError, ("weight has shape", "(C·M, 1, R, S)")
    ),
    Wrong("0-d", lambda a: n.pointwise_conv(a.b[0:1].reshape(()), a.pw), ShapeError, ("x has 0 axes", "at least 2")),
    Wrong("dense weight", lambda a: n.depthwise_conv2d(a.x, a.x[0][:, :, :3, None]), ShapeError, ("second axis is 5",)),
    Wrong("empty kernel", lambda a: n.depthwise_conv2d(a.x, a.w[..., :0]), ShapeError, ("empty kernel",)),
    Wrong(
        "multiplier", lambda a: n.depthwise_conv2d(a.x, np.repeat(a.w, 2, 0)[:3]), ShapeError, ("3 output", "x has 2")
    ),
    Wrong("no outputs", lambda a: n.depthwise_conv2d(a.x, a.w[:0]), ShapeError, ("0 output channels",)),
    Wrong("bias", lambda a: n.depthwise_conv2d(a.x, a.w, a.pw[0:1, 0]), ShapeError, ("bias has shape (1,)", "(2,)")),
    Wrong("pointwise channels", lambda a: n.pointwise_conv(a.x, a.pw.T), ShapeError, ("4 input channels", "(K, 2)")),
    Wrong("pointwise kernel", lambda a: n.pointwise_conv(a.x, a.w), ShapeError, ("needed (K, C) or (K, C, 1, …)",)),
    Wrong("kernel too large", conv(dilation=3), ShapeError, ("spans 7 elements", "padded input has 5", "pad more")),
    Wrong("grad_out", lambda a: n.depthwise_conv2d_backward(a.x, a.x, a.w), ShapeError, ("grad_out has shape",)),
    Wrong("separable", lambda a: n.separable_conv2d(a.x, a.w, a.w), ShapeError, ("pointwise_weight has shape",)),
    Wrong(
        "on a device", lambda a: n.depthwise_conv2d(Device(), a.w), BackendUnavailableError, ("'cuda'", "usable here")
    ),
    Wrong(
        "managed device",
        lambda a: n.depthwise_conv2d(ManagedDevice(), a.w),
        BackendUnavailableError,
        ("'cuda' cannot be used", "usable here"),
    ),
    Wrong(
        "refused DLPack",
        lambda a: n.depthwise_conv2d(Refuses(), a.w),
        DTypeError,
        ("x is a Refuses", "requires grad", "detached"),
    ),
    Wrong("object", lambda a: n.depthwise_conv2d(a.x.astype(object), a.w), DTypeError, ("x has dtype object",)),
    Wrong("bool", lambda a: n.depthwise_conv2d(a.x > 0, a.w), DTypeError, ("x has dtype bool", "needed one of")),
    Wrong("mixed bias", lambda a: n.depthwise_conv2d(a.x, a.w, a.b.astype("f8")), DTypeError, ("bias has dtype",)),
    Wrong(
        "mixed pointwise",
        lambda a: n.separable_conv2d(a.x, a.w, a.pw.astype("f8")),
        DTypeError,
        ("pointwise_weight has dtype float64", "x has float32"),
    ),
    Wrong("transposed weight", lambda a: n.depthwise_conv2d(a.x, a.x[:, :, :3]), ShapeError, (".reshape(C·M, 1, …)",)),
    # options
    Wrong("stride float", conv(stride=2.0), OptionError, ("stride is 2.0 (float)", "an int of at least 1")),
    Wrong("stride bool", conv(stride=True), OptionError, ("stride is True (bool)",)),
    Wrong("stride 0", conv(stride=0), OptionError, ("stride is 0", "at least 1")),
    Wrong("stride entries", conv(stride=(1, 2, 3)), OptionError, ("3 entries", "one per spatial axis (2)")),
    Wrong("dilation", conv(dilation=(1, -1)), OptionError, ("dilation[1] is -1",)),
    Wrong("padding negative", conv(padding=-1), OptionError, ("padding is -1", "at least 0")),
    Wrong("padding name", conv(padding="SAME"), OptionError, ("'SAME'", "did you mean 'same'")),
    Wrong(
        "padding entries", conv(padding=(1, 2, 3)), OptionError, ("3 entries", "(low, high) pair per spatial axis (2)")
    ),
    Wrong("padding triple", conv(padding=((1, 2, 3), 0)), OptionError, ("padding[0] is (1, 2, 3)", "(low, high)")),
    Wrong("padding side", conv(padding=((1, -2), 0)), OptionError, ("padding[0][1] is -2",)),
    Wrong("padding float", conv(padding=1.5), OptionError, ("padding is 1.5",)),
    Wrong("1-D pair", lambda a: n.depthwise_conv1d(a.line, a.w1, padding=(1, 2)), OptionError, ("((low, high),)",)),
    Wrong("mode", conv(padding_mode="mirror"), OptionError, ("padding_mode is 'mirror'", "'reflect'")),
    Wrong("reflect", conv(padding=5, padding_mode="reflect"), ShapeError, ("'reflect' has 5 inputs", "at most 4")),
    Wrong("circular", conv(padding=6, padding_mode="circular"), ShapeError, ("'circular'", "at most 5")),
    Wrong("layout", conv(layout="NHWC"), OptionError, ("layout is 'NHWC'", "'channels_last'")),
    Wrong("activation", conv(activation="ReLU"), OptionError, ("'ReLU'", "did you mean 'relu'")),
    Wrong("overflow", conv(padding=2**62), ShapeError, ("more than memory can address",)),
    Wrong("unknown keyword", conv(strides=2), TypeError, ("depthwise_conv2d()", "'strides'")),
    Wrong("backend", conv(backend="nunba"), OptionError, ("'nunba'", "did you mean 'numba'")),
    Wrong("weight on a device", lambda a: n.depthwise_conv2d(a.x, Device()), BackendUnavailableError, ("'cuda'",)),
    Wrong(
        "needs 0-d", lambda a: n.depthwise_conv2d_backward(a.g, a.x, a.w, needs=np.array(2)), OptionError, ("needs is",)
    ),
    Wrong(
        "output_padding None",
        lambda a: n.depthwise_conv_transpose2d(a.x, a.w, output_padding=None),
        OptionError,
        ("output_padding is None",),
    ),
    Wrong("unavailable", conv(backend="cuda"), BackendUnavailableError, ("'cuda' cannot be used", "reference")),
    Wrong("needs", lambda a: n.depthwise_conv2d_backward(a.g, a.x, a.w, needs="wieght"), OptionError, ("'weight'",)),
    Wrong("needs 3", lambda a: n.depthwise_conv2d_backward(a.g, a.x, a.w, needs=3), OptionError, ("needs is 3",)),
    Wrong(
        "input_shape",
        lambda a: n.depthwise_conv2d_input_grad(a.g, a.w, (1, 2, 9, 9)),
        ShapeError,
        ("grad_out has shape (1, 2, 3, 3)", "(1, 2, 7, 7)"),
    ),
    Wrong("shape 5", lambda a: n.depthwise_conv2d_input_grad(a.g, a.w, 5), OptionError, ("input_shape is 5",)),
    Wrong("shape -1", lambda a: n.depthwise_conv2d_input_grad(a.g, a.w, (1, 2, -1, 5)), OptionError, ("at least 0",)),
    Wrong("shape rank", lambda a: n.depthwise_conv2d_input_grad(a.g, a.w, (1, 2, 5)), ShapeError, ("with 3 axes",)),
    Wrong(
        "weight_shape", lambda a: n.depthwise_conv2d_weight_grad(a.g, a.x, (2, 2, 3, 3)), ShapeError, ("second axis",)
    ),
    Wrong(
        "output_padding",
        lambda a: n.depthwise_conv_transpose2d(a.x, a.w, output_padding=1),
        OptionError,
        ("output_padding is 1 on spatial axis 0", "less than its stride 1"),
    ),
    Wrong(
        "output_padding with a name",
        lambda a: n.depthwise_conv_transpose2d(a.x, a.w, stride=2, padding="same", output_padding=1),
        OptionError,
        ("output_padding is 1 with padding='same'", "needed 0"),
    ),
    Wrong(
        "nothing left",
        lambda a: n.depthwise_conv_transpose2d(a.w, a.w[:1], padding=3),
        ShapeError,
        ("would have -1 elements", "less padding"),
    ),
    Wrong("grid", lambda a: n.depthwise_conv_tokens(a.tokens, a.w, grid=(2, 4)), ShapeError, ("(2, 4)", "(N, 8, C)")),
    Wrong(
        "grid side",
        lambda a: n.depthwise_conv_tokens(a.tokens, a.w, grid=(-2, -3)),
        OptionError,
        ("grid[0] is -2", "at least 0"),
    ),
    Wrong("grid keyword", lambda a: n.depthwise_conv_tokens(a.tokens, a.w, grd=(2, 3)), TypeError, ("'grd'",)),
    Wrong(
        "token gradient",
        lambda a: n.depthwise_conv_tokens_backward(a.x, a.tokens, a.w, grid=(2, 3)),
        ShapeError,
        ("grad_out has shape (1, 2, 5, 5)", "needed (1, 6, 2)"),
    ),
    Wrong("grid int", lambda a: n.depthwise_conv_tokens(a.tokens, a.w, grid=6), OptionError, ("grid is 6", "(H, W)")),
    Wrong(
        "state",
        lambda a: n.causal_depthwise_conv1d(a.line, a.w1, state=a.line),
        ShapeError,
        ("state has shape (1, 2, 6)", "(1, 2, 2)"),
    ),
    Wrong(
        "next state",
        lambda a: n.causal_depthwise_conv1d_backward(a.line, a.line, a.w1, grad_next_state=a.line),
        ShapeError,
        ("grad_next_state has shape (1, 2, 6)", "(1, 2, 2)"),
    ),
    Wrong(
        "fold 0-d", lambda a: n.fold_batchnorm(a.b[0:1].reshape(()), None, *[a.b] * 4, eps=0), ShapeError, ("no axes",)
    ),
    Wrong("eps nan", lambda a: n.fold_batchnorm(a.w, None, *[a.b] * 4, eps=float("nan")), OptionError, ("eps is nan",)),
    Wrong("eps bool", lambda a: n.fold_batchnorm(a.w, None, *[a.b] * 4, eps=True), OptionError, ("eps is True",)),
    Wrong(
        "eps", lambda a: n.fold_batchnorm(a.w, None, *[a.b] * 4, eps=-1.0), OptionError, ("eps is -1.0", "at least 0")
    ),
    Wrong(
        "gamma", lambda a: n.fold_batchnorm(a.w, None, a.pw[0, :1], *[a.b] * 3, eps=0), ShapeError, ("gamma has shape",)
    ),
    Wrong("threads", lambda a: n.set_num_threads(0), OptionError, ("n is 0", "at least 1")),
    # out
    Wrong("out list", into(lambda a: [1.0]), DTypeError, ("out is a list", "NumPy array (1, 2, 3, 3)")),
    Wrong("out dtype", into(lambda a: a.out.astype("f8")), DTypeError, ("out has dtype float64", "float32")),
    Wrong("out byte order", into(lambda a: a.out.astype(">f4")), DTypeError, ("out has dtype >f4", "needed float32")),
    Wrong(
        "out is weight",
        lambda a: n.depthwise_conv2d(a.x, a.w, out=a.w.reshape(1, 2, 3, 3)),
        OptionError,
        ("out shares memory with weight",),
    ),
    Wrong("out shape", into(lambda a: a.out[..., :2]), ShapeError, ("out has shape (1, 2, 3, 2)", "(1, 2, 3, 3)")),
    Wrong("out read-only", into(read_only), OptionError, ("out is read-only",)),
    Wrong("out in itself", into(interleaved), OptionError, ("share memory", "strides")),
    Wrong("out is x", into(lambda a: a.x[:, :, 1:4, 1:4]), OptionError, ("out shares memory with x", "a copy")),
]


# what is wrong with no operator's operands: who calls is not known there
NAMELESS = {"threads"}


def operator(case: Wrong) -> str:
    """The public function that a case calls."""
    return next(name for name in case.call.__code__.co_names if name in n.__all__)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "_"))
def test_wrong_call(case):
    arrays = operands()
    before = {name: array.tobytes() for name, array in arrays.items()}
    with pytest.raises(case.error) as caught:
        case.call(Namespace(arrays))
    words = case.words if case.what in NAMELESS else (operator(case), *case.words)
    assert [word for word in words if word not in str(caught.value)] == []
    assert {name: array.tobytes() for name, array in arrays.items()} == before


@given(illegal())
def test_one_illegal_option_among_legal_ones(drawn):
    case, option, error = drawn
    x, weight = case.x(), case.weight()
    before = x.tobytes(), weight.tobytes()
    with pytest.raises(error, match=re.escape(next(iter(option)))) as caught:
        case.conv(x, weight, **option)
    assert type(caught.value) is error
    assert (x.tobytes(), weight.tobytes()) == before


def test_messages_show_the_call():
    a = Namespace(operands())
    with pytest.raises(ShapeError) as caught:
        n.depthwise_conv2d(a.x, a.w, dilation=9)
    assert str(caught.value).startswith("depthwise_conv2d: ")
    assert str(caught.value).endswith("(x (1, 2, 5, 5), weight (2, 1, 3, 3); channels_first)")


def test_elements_between_do_not_overlap():
    """An ``out`` between the elements of an input is no overlap, though its bounds are inside the input's."""
    buffer = np.zeros((1, 2, 5, 10), dtype=np.float32)
    x, out = buffer[..., ::2], buffer[:, :, :3, 1:7:2]
    assert n.depthwise_conv2d(x, operands()["w"], out=out) is out


@pytest.fixture(autouse=True)
def _no_backend_named(monkeypatch):
    monkeypatch.delenv("NPDWCONV_BACKEND")


@pytest.fixture(autouse=True)
def _no_cuda(monkeypatch):
    """A machine on which CUDA cannot be used; tests/cuda has the errors of one on which it can."""
    monkeypatch.setattr(presence, "missing", lambda: "there is none")
    monkeypatch.setattr(dispatch, "_kernels", {})


class TestBackends:
    def test_environment(self, monkeypatch):
        a = Namespace(operands())
        monkeypatch.setenv("NPDWCONV_BACKEND", "nmpy")
        with pytest.raises(OptionError, match="environment variable NPDWCONV_BACKEND is 'nmpy'"):
            n.depthwise_conv2d(a.x, a.w)
        monkeypatch.setenv("NPDWCONV_BACKEND", "reference")
        assert "environment" in n.explain_backend(a.x).reason
        monkeypatch.setenv("NPDWCONV_BACKEND", "cuda")
        with n.use_backend("reference"):
            assert n.depthwise_conv2d(a.x, a.w).shape == (1, 2, 3, 3)

    def test_an_operation_that_a_usable_backend_lacks(self, monkeypatch):
        a = Namespace(operands())
        monkeypatch.setitem(dispatch.TABLE, "depthwise_fwd", ("depthwise", ("numba",)))
        with pytest.raises(BackendUnavailableError, match=r"'reference' .* has no depthwise_fwd; it exists on numba"):
            n.depthwise_conv2d(a.x, a.w, backend="reference")

    def test_unknown_and_unusable(self):
        with pytest.raises(OptionError, match="'nothing'"), n.use_backend("nothing"):
            pass
        unusable = [name for name, reason in n.backend_status().items() if reason]
        for name in unusable:
            with pytest.raises(BackendUnavailableError, match=name), n.use_backend(name):
                pass

    def test_contexts_do_not_reach_other_threads(self):
        seen: list[str] = []
        with n.use_backend("reference"):
            thread = threading.Thread(target=lambda: seen.append(n.explain_backend().reason))
            thread.start()
            thread.join()
            assert "use_backend" in n.explain_backend().reason
        assert "use_backend" not in seen[0]
        assert "use_backend" not in n.explain_backend().reason

    def test_a_call_comes_first(self):
        assert n.explain_backend(backend="numba").reason == "the call names backend='numba'"
        assert n.explain_backend(Device()).backend == "cuda"
