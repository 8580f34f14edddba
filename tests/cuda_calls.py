"""Calls for the CUDA backend: every operator at extents about a tile, and arrays as another package would have them.

Extents are counted in the lanes of a block, four in the simulator and 32 on a GPU: the same table is small in the one
and large on the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kernels.situations import (
    Arrays,
    Situation,
    bounded,
    causal,
    depthwise,
    dtype_named,
    mismatch,
    pointwise,
    separable,
    tokens,
    transposed,
)

import npdwconv
from npdwconv import presence
from npdwconv.device import DeviceArray, to_device
from npdwconv.kernels.cuda import provider
from npdwconv.kernels.cuda.gather_spec import LANES

MISSING = presence.missing()
needs_cuda = pytest.mark.skipif(MISSING is not None, reason=f"CUDA: {MISSING}")
needs_gpu = pytest.mark.skipif(
    MISSING is not None or provider.simulated(), reason=f"a GPU: {MISSING or 'the simulator is on'}"
)
# In the simulator a kernel's arithmetic is NumPy's, which warns of what a device does in silence.
silent = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")

C = LANES  # channels of a block, channels_last


def one_image(s: Situation) -> Situation:
    """The same call with one image."""
    batched = {"x", "state"}
    return Situation(
        s.name,
        s.operator,
        {name: (1, *shape[1:]) if name in batched else shape for name, shape in s.shapes.items()},
        s.options,
        s.terms,
        s.layouts,
    )


def core(scale: int = 1) -> tuple[Situation, ...]:
    """One of every operator: what is run on every dtype."""
    w = 4 * scale
    return (
        depthwise("k3", C + 1, (3, w + 1), (3, 3), padding=1),
        transposed("transpose-k3-s2", 3, (2, w), (3, 3), stride=2, padding=1, output_padding=1),
        pointwise("pointwise", C + 1, C + 3, (w + 1,)),
        separable("separable", 3, 5, (3, w), (2, 3), padding=1),
    )


def more(scale: int = 1) -> Iterator[Situation]:
    """What else each operator can be asked for, one image each where batches are none of its matter."""
    w = 4 * scale
    # widths and channels by which vectors have 4, 2 and 1 elements; kernels 1, 2, 3, 5, 7
    yield depthwise("k3-vectors", C, (3, w), (3, 3), padding=1)
    yield depthwise("k3-pairs", 2, (2, w + 2), (3, 3), padding=1)
    yield depthwise("k1", C, (2, w), (1, 1))
    yield depthwise("k2-s2", C, (4, 2 * w), (2, 2), stride=2)
    yield depthwise("k5", 2, (5, w), (5, 5), padding=2)
    yield depthwise("k7", 1, (3, w), (7, 7), padding=3)
    yield depthwise("k1x9-loops", 1, (2, w + 1), (1, 9), padding=((0, 0), (4, 4)))
    yield depthwise("1d-k18", 1, (w + 16,), (18,), padding=1)  # more products than one word adds up
    yield depthwise("1d-k50-loops", 1, (w + 2,), (50,), padding=24)
    # strides, dilations, multipliers
    yield depthwise("s2-d2", 2, (5, 2 * w + 1), (3, 3), stride=2, dilation=2, padding=2)
    yield depthwise("s3-d1x3", 2, (4, 3 * w + 1), (3, 3), stride=3, dilation=(1, 3), padding=((2, 0), (3, 1)))
    yield depthwise("s5-loops", 1, (6, 2 * w + 3), (3, 3), stride=5, padding=2)
    yield depthwise("m2", 2, (3, w), (3, 3), 2, padding=1)
    yield depthwise("m3-s2", 2, (3, w + 1), (2, 3), 3, stride=(1, 2), padding=1)
    yield depthwise("m2-loops", 1, (2, w + 2), (1, 5), 2, stride=5, padding=((0, 0), (1, 2)))
    # paddings
    yield depthwise("same", 1, (4, w + 1), (2, 3), stride=(2, 1), padding="same")
    yield depthwise("same-lower", 1, (3, w), (2, 4), stride=(1, 2), padding="same_lower")
    yield depthwise("uneven", 2, (3, w), (3, 3), padding=((2, 0), (0, 3)))
    yield depthwise("wider-than-the-image", 1, (2, 3), (5, 7), padding=((3, 2), (4, 3)))
    yield depthwise("reflect", 2, (3, w), (3, 3), padding=((2, 1), (1, 2)), padding_mode="reflect")
    yield depthwise("replicate", 2, (2, w), (3, 3), stride=2, padding=(2, 3), padding_mode="replicate")
    yield depthwise("circular", 1, (3, w), (2, 3), 2, padding=(1, 2), padding_mode="circular")
    # ranks
    yield depthwise("1d-causal", C, (w + 1,), (4,), padding="causal")
    yield depthwise("3d", 2, (3, 2, w), (3, 2, 3), padding=1)
    yield depthwise("3d-s2-m2", 1, (3, 3, w), (2, 1, 3), 2, stride=(2, 1, 2), dilation=(2, 1, 1), padding=(1, 0, 1))
    yield transposed("transpose-1d-k4-s2", C, (w,), (4,), stride=2, padding="same")
    yield transposed("transpose-k3-s1-d2", 2, (3, w), (3, 3), dilation=2, padding=2)
    yield transposed("transpose-s3-m2", 2, (2, w - 1), (3, 2), 2, stride=3, padding=1)
    yield transposed("transpose-s5-loops", 1, (2, 3), (3, 3), stride=5, padding=1)
    yield transposed("transpose-3d", 1, (2, 2, 3), (2, 1, 3), stride=(2, 1, 2), padding=(1, 0, 1))
    yield pointwise("pointwise-no-pixels-axes", C + 1, C, (), 3)
    yield pointwise("pointwise-2d-vectors", 8, 4, (2, w), 1)
    yield pointwise("pointwise-3d-thin", 1, 1, (1, 2, w + 1), 3)
    yield separable("separable-1d", 2, 4, (w + 1,), (3,), padding="causal")
    yield separable("separable-3d-s2", 1, 2, (2, 3, w), (1, 2, 3), stride=2, padding=1)
    yield separable("separable-reflect", 2, 3, (3, w), (3, 3), padding=1, padding_mode="reflect")
    yield tokens("tokens", C, (3, w))
    yield tokens("tokens-s2-d2", 3, (4, w), stride=2, dilation=2)
    yield causal("causal-state", 3, w, 4, state=True)
    yield causal("causal-no-state", C, w - 1, 3, state=False)
    yield causal("causal-shorter-than-its-state", 2, 1, 4, state=True)


def swept(scale: int = 1) -> Iterator[Situation]:
    """Every extent about a tile, kernel, stride and dilation: the sweep."""
    for w in range(1, 10):
        yield depthwise(f"w{w}", 2, (2, w * scale), (3, 3), padding=1)
        yield depthwise(f"w{w}-s2", 2, (2, w * scale), (3, 3), stride=2, padding=1)
        yield transposed(f"transpose-w{w}", 2, (2, w * scale), (3, 3), stride=2, padding=1)
        yield pointwise(f"pointwise-w{w}", w, 10 - w, (w * scale,))
    for h in (*range(1, 10), 15, 17):
        yield depthwise(f"h{h}", 1, (h * scale, 4), (3, 3), padding=1)
        yield depthwise(f"h{h}-odd", 1, (h * scale, 3), (3, 3), padding=1)
    for c in (1, C - 1, C, C + 1, 2 * C, 2 * C + 2, 4 * C, 4 * C + 1):
        yield depthwise(f"c{c}", c, (2, 3), (3, 3), padding=1)
        yield depthwise(f"c{c}-m2", c, (2, 3), (2, 3), 2, padding=1)
        yield transposed(f"transpose-c{c}-m2", c, (2, 3), (2, 3), 2, stride=2)
        yield pointwise(f"pointwise-c{c}", c, c + 1, (3,))
        yield separable(f"separable-c{c}", c, c, (2, 3), (3, 3), padding=1)
        yield tokens(f"tokens-c{c}", c, (2, 3))
        yield causal(f"causal-c{c}", c, 5, 3, state=True)
    for k in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13):
        yield depthwise(f"k{k}", 2, (4 * scale, 4 * scale), (k, k), padding=k // 2)
        yield depthwise(f"k{k}-m2", 1, (3, 5), (k, k), 2, stride=2, padding=k - 1)
        yield depthwise(f"1d-k{k}", 2, (k + 4 * scale,), (k,), padding=k // 2)
        yield transposed(f"transpose-k{k}", 2, (3, 4), (k, k), stride=2, padding=0)
    for stride in (1, 2, 3, 4, 5):
        for dilation in (1, 2, 3):
            options = {"stride": stride, "dilation": dilation}
            for low in range(4):
                padding = ((low, 1), (1, low))
                yield depthwise(f"s{stride}-d{dilation}-p{low}", 2, (7, 8 * scale), (3, 3), padding=padding, **options)
            yield transposed(f"transpose-s{stride}-d{dilation}", 2, (3, 4), (3, 3), padding=1, **options)
            yield transposed(f"transpose-s{stride}-d{dilation}-m3", 1, (2, 3), (2, 2), 3, padding=0, **options)
    for mode in ("reflect", "replicate", "circular"):
        for low in range(3):
            yield depthwise(f"1d-{mode}-{low}", 2, (4,), (3,), padding=((low, 2),), padding_mode=mode)
            yield depthwise(f"3d-{mode}-{low}", 1, (3, 3, 4), (2, 3, 3), padding=(1, low, 2), padding_mode=mode)


def whole_numbers(arrays: Arrays, dtype: str) -> Arrays:
    """Small integers in a dtype; sums of them are exact in float32, so that one rounding at the end is all there is."""
    return {name: array.astype(dtype_named(dtype)) for name, array in arrays.items()}


def exactly(s: Situation, layout: str, dtype: str = "float32", **activations: str) -> None:
    """On small integers no sum is rounded, so nothing may differ from the reference."""
    operands = whole_numbers(s.operands("integers", layout), dtype)
    outputs = s.forward(operands, "reference", layout, **activations)
    behind = whole_numbers(s.gradients(outputs, "integers"), dtype)
    found = s.both(operands, behind, "cuda", layout, **activations)
    wanted = s.both(operands, behind, "reference", layout, **activations)
    assert {array.dtype for array in found.values()} == {dtype_named(dtype)}
    problem = mismatch(found, wanted)
    assert not problem, problem


def closely(s: Situation, layout: str, dtype: str, **activations: str) -> None:
    """On other numbers the sums may differ by rounding, and by no more than it explains."""
    operands = s.operands(dtype, layout)
    behind = s.gradients(s.forward(operands, "reference", layout, **activations), dtype)
    found = s.both(operands, behind, "cuda", layout, **activations)
    assert {array.dtype for array in found.values()} == {operands["x"].dtype}
    problem = mismatch(found, *bounded(s, operands, behind, layout, activations))
    assert not problem, problem


# arrays on the device, and one small call


def numbers(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return numbers(1, 2, 3, 4), numbers(2, 1, 3, 3, seed=1), numbers(2, seed=2)


def conv(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
    return npdwconv.depthwise_conv2d(x, weight, bias, padding=1, **options)


def wanted() -> np.ndarray:
    return conv(*operands(), backend="reference")


def on_device(arrays: Arrays) -> Arrays:
    """Copies on the device."""
    return {name: to_device(array) for name, array in arrays.items()}


def on_host(arrays: Arrays) -> Arrays:
    """Copies on the host."""
    return {name: array.copy_to_host() for name, array in arrays.items()}


def strided(array: np.ndarray) -> DeviceArray:
    """The same values on the device, backwards and with gaps in a larger array, which is its ``_owner``'s."""
    wide = np.full([2 * n + 3 for n in array.shape], np.nan, array.dtype)
    places = tuple(slice(2 * n, None if n == 0 else 0, -2) for n in array.shape)
    wide[places] = array
    return to_device(wide)[places]


class Foreign:
    """Another package's device array: it has the protocol, and nothing else."""

    def __init__(self, array: DeviceArray, **changes: Any) -> None:
        self.kept = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


class ByDlpack:
    """Another package's device array, that speaks DLPack alone."""

    def __init__(self, array: DeviceArray) -> None:
        self.kept = array
        self.streams: list[Any] = []

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.kept.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kept.__dlpack_device__()
