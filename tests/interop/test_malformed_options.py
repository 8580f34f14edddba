"""Options of no use to a framework: an `OptionError` that names the option and what it needed, never anything else."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from npdwconv.errors import OptionError
from npdwconv.interop import jax, mlx, spelling, tensorflow, tflite

Options = dict[str, Any]

# Every options function, and calls of it that are right: each option occurs in one of them.
FUNCTIONS: dict[str, tuple[Callable[..., Options], list[Options]]] = {
    "torch_options": (
        spelling.torch_options,
        [{"stride": (2, 1), "padding": (1, 1), "dilation": [1, 1], "padding_mode": "zeros"}, {"padding": "same"}],
    ),
    "torch_transpose_options": (
        spelling.torch_transpose_options,
        [{"stride": (2, 1), "padding": (1, 1), "output_padding": (1, 0), "dilation": (1, 1)}],
    ),
    "onnx_options": (
        spelling.onnx_options,
        [
            {"strides": [2, 1], "pads": [0, 1, 2, 3], "dilations": [1, 1], "kernel_shape": [3, 3], "group": 4},
            {"auto_pad": b"SAME_UPPER", "strides": [2]},
        ],
    ),
    "onnx_transpose_options": (
        spelling.onnx_transpose_options,
        [
            {"strides": [2, 1], "pads": [0, 1, 2, 3], "dilations": [1, 1], "output_padding": [1, 0], "group": 4},
            {"auto_pad": "SAME_LOWER", "output_padding": [0]},
            {"strides": [2, 2], "output_shape": [9, 9], "kernel_shape": [3, 3], "input_size": [5, 5]}
            | {"auto_pad": "NOTSET", "dilations": [1, 1], "output_padding": [1, 1], "pads": [0, 0, 0, 0]},
        ],
    ),
    "tensorflow": (
        tensorflow.options,
        [
            {"strides": [1, 2, 2, 1], "padding": "SAME", "data_format": "NHWC", "dilations": [1, 1]},
            {"strides": 1, "padding": [[0, 0], [0, 0], [1, 2]], "data_format": "NCW", "dilations": None},
        ],
    ),
    "keras": (
        tensorflow.keras_options,
        [{"strides": (2, 1), "padding": "same", "data_format": "channels_first", "dilation_rate": (1, 1)}],
    ),
    "jax": (
        jax.options,
        [
            {"window_strides": (2, 1), "padding": [(1, 0), (2, 3)], "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
            | {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4, "batch_group_count": 1},
            {"window_strides": (1,), "padding": "SAME"},
        ],
    ),
    "jax_transpose": (
        jax.transpose_options,
        [
            {"lhs_dilation": (2, 1), "padding": [(1, 0), (2, 3)], "kernel_shape": (3, 4), "rhs_dilation": (1, 2)}
            | {"dimension_numbers": ("NHWC", "HWIO", "NHWC")},
        ],
    ),
    "flax": (
        jax.flax_options,
        [
            {"kernel_size": (3, 4), "strides": (2, 1), "padding": [1, (2, 3)], "input_dilation": (1, 1)}
            | {"kernel_dilation": (1, 1), "feature_group_count": 4},
            {"kernel_size": 3, "padding": "CAUSAL"},
            {"kernel_size": (3, 4), "padding": "REFLECT", "kernel_dilation": (1, 2)},
        ],
    ),
    "mlx": (mlx.options, [{"stride": (2, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 4}]),
    "mlx_general": (
        mlx.general_options,
        [
            {"stride": (2, 1), "padding": ([0, 1], [2, 3]), "kernel_dilation": (1, 1), "input_dilation": (1, 1)}
            | {"groups": 4, "flip": False},
            {"padding": [1, 2]},
        ],
    ),
    "mlx_transpose": (
        mlx.transpose_options,
        [{"stride": (2, 1), "padding": (1, 1), "output_padding": (1, 0), "dilation": (1, 1), "groups": 4}],
    ),
    "tflite": (
        tflite.options,
        [
            {"padding": "SAME", "stride_h": 2, "stride_w": 1, "dilation_h_factor": 1, "dilation_w_factor": 1}
            | {"depth_multiplier": 2, "fused_activation_function": "RELU6"},
        ],
    ),
}
CALLS = [(name, call) for name, (_, calls) in FUNCTIONS.items() for call in calls]

SCALARS: list[Any] = [None, True, 0, -1, 7, 1.0, float("nan"), 1j, "", "SAME", "NCHW", b"\xff", object(), np.int64(2)]
NESTED: list[Any] = [[], [None], [True], [1.5], ["1"], [-1], [0], [1], (2, 2), [1, 1, 1], [1, 1, 1, 1], [1] * 8]
NESTED += [[[]], [[1, 2]], [(1, 2), (3, 4)], [(1, 2), 3], [(1, None), (1, 1)], [[0, 0]] * 4, ([1], [1, 2]), [[[1]]]]
OTHERS: list[Any] = [{}, {"a": 1}, {1, 2}, bytearray(b"ab"), np.array([1, 1]), np.array([[0, 0]]), range(2), (2, "a")]
OTHERS += [("NHWC", "HWIO"), ("NHWC", "HWIO", None), ("NWHC", "HWIO", "NWHC"), ("NC", "OI", "NC"), ("a", "b", "c")]
OTHERS += [((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 1)), ((0, 1), (0, 1), (0, 1)), ((0, 1, 2), 3, "NCW"), len, Options]
JUNK = SCALARS + NESTED + OTHERS
# which of them two options may get at once: they differ in what they say of the number of axes
LENGTHS: list[Any] = [None, -1, 7, np.int64(2), "SAME", b"\xff", [], [1], (2, 2), [1, 1, 1], [1] * 8, [None], {}]
LENGTHS += [[[1, 2]], [(1, 2), (3, 4)], [[0, 0]] * 4, ([1], [1, 2]), ("NWC", "WIO", "NWC"), ((0, 1, 2),) * 3]


def spatial_entries(options: Options) -> set[int]:
    return {len(value) for value in options.values() if isinstance(value, tuple)}


def outcome(function: Callable[..., Options], options: Options) -> str:
    """The message of an `OptionError`, empty where there are options; all other errors are not caught."""
    try:
        found = function(**options)
    except OptionError as error:
        return str(error)
    assert {"stride", "padding", "dilation"} <= set(found)
    assert len(spatial_entries(found)) <= 1, f"{options} gave {found}"
    assert spatial_entries(found) <= {1, 2, 3}, f"{options} gave {found}"
    return ""


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_the_calls_are_right(name: str, call: Options) -> None:
    assert outcome(FUNCTIONS[name][0], call) == ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_is_among_the_calls(name: str) -> None:
    function, calls = FUNCTIONS[name]
    assert {option for call in calls for option in call} == set(signature(function).parameters)


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_one_option_is_malformed(name: str, call: Options) -> None:
    for option, junk in product(call, JUNK):
        message = outcome(FUNCTIONS[name][0], call | {option: junk})
        assert not message or option in message, f"{option} {junk!r}: {message}"


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_two_options_are_malformed(name: str, call: Options) -> None:
    for options in combinations(call, 2):
        for junk in product(LENGTHS, repeat=2):
            outcome(FUNCTIONS[name][0], call | dict(zip(options, junk, strict=True)))


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_integers_of_numpy_are_taken_and_become_ints(name: str, call: Options) -> None:
    def of_numpy(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(of_numpy, value))
        return np.int32(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def kinds(value: Any) -> set[type]:
        return set().union(*map(kinds, value)) if isinstance(value, tuple) else {type(value)}

    found = FUNCTIONS[name][0](**{option: of_numpy(value) for option, value in call.items()})
    assert found == FUNCTIONS[name][0](**call)
    assert set().union(*map(kinds, found.values())) <= {int, str, type(None)}


SPECS = [
    ("NHWC", "HWIO", "NHWC"),
    ("NCHW", "OIHW", "NCHW"),
    ("NWC", "WIO", "NWC"),
    ("NCDHW", "DHWIO", "NCDHW"),
    ("NC01", "O01I", "NC01"),
]


def places(spec: str, ends: str, kernel: str) -> tuple[int, ...]:
    """Where an array's axes stand: batch and channels (or K and C of a kernel), then spatial ones as in the kernel."""
    return tuple(spec.index(axis) for axis in (*ends, *(axis for axis in kernel if axis not in "OI")))


@pytest.mark.parametrize("spec", SPECS)
def test_dimension_numbers_by_places_are_those_by_letters(spec: tuple[str, str, str]) -> None:
    numbers = tuple(places(axes, ends, spec[1]) for axes, ends in zip(spec, ("NC", "OI", "NC"), strict=True))
    call: Options = {"window_strides": (2,) * (len(spec[0]) - 2), "padding": "SAME"}
    assert jax.options(**call, dimension_numbers=numbers) == jax.options(**call, dimension_numbers=spec)
    assert jax.kernel(numbers[1]) == jax.kernel(spec[1])


@pytest.mark.peers
@pytest.mark.parametrize("spec", SPECS)
def test_the_dimension_numbers_of_jax(spec: tuple[str, str, str]) -> None:
    lax = pytest.importorskip("jax", reason="the peer").lax
    shape = (4,) * len(spec[0])
    numbers = lax.conv_dimension_numbers(shape, shape, spec)
    kernel = spec[1]
    assert numbers.rhs_spec == places(kernel, "OI", kernel)
    call: Options = {"window_strides": (2,) * (len(spec[0]) - 2), "padding": "SAME"}
    assert jax.options(**call, dimension_numbers=numbers) == jax.options(**call, dimension_numbers=spec)
    assert jax.kernel(numbers.rhs_spec) == jax.kernel(kernel)


def test_spatial_axes_in_an_order_of_their_own_are_refused() -> None:
    """JAX' strides follow the kernel's axes: (H, W), of an image whose axes are W and H."""
    with pytest.raises(OptionError, match="the spatial axes in the kernel's order: NCHW or NHWC"):
        jax.options(window_strides=(1, 2), padding="SAME", dimension_numbers=("NWHC", "HWIO", "NWHC"))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (spelling.onnx_options, {"pads": 1}, r"pads is 1 \(int\); needed a sequence"),
        (spelling.onnx_options, {"strides": [1, 1], "pads": [1, 1]}, "strides has 2, pads has 1; needed one entry for"),
        (spelling.onnx_options, {"strides": [1], "kernel_shape": [3, 3]}, "strides has 1, kernel_shape has 2"),
        (
            spelling.onnx_transpose_options,
            {"output_shape": 9, "kernel_shape": [3], "input_size": [4]},
            "output_shape is 9",
        ),
        (
            spelling.onnx_transpose_options,
            {"output_shape": [9], "kernel_shape": [3], "input_size": [4, 4]},
            "kernel_shape has 1|input_size has 2",
        ),
        (
            spelling.onnx_transpose_options,
            {"output_shape": [0], "kernel_shape": [3], "input_size": [4]},
            r"output_shape\[0\] is 0",
        ),
        (tensorflow.options, {"strides": 1, "padding": 1}, r"padding is 1 \(int\); needed a sequence of pairs"),
        (jax.options, {"window_strides": 1, "padding": "SAME"}, r"window_strides is 1 \(int\)"),
        (jax.options, {"window_strides": [1], "padding": 1}, "padding is 1"),
        (jax.flax_options, {"kernel_size": (3, 3), "strides": (1,)}, "kernel_size has 2, strides has 1"),
        (spelling.torch_options, {"stride": (1, 1, 1, 1)}, "stride has 4; needed .* one to three"),
        (spelling.torch_options, {"stride": ()}, "stride has 0"),
        (spelling.torch_options, {"stride": b"\x01\x01"}, "stride is b"),
        (jax.options, {"window_strides": bytearray(b"\x01"), "padding": "SAME"}, "window_strides is bytearray"),
    ],
)
def test_messages(function: Callable[..., Options], arguments: Options, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        function(**arguments)
