"""A separable convolution in one kernel: where it is taken, and that its bits are those of the two calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_calls import closely, exactly, needs_cuda, on_device, on_host, separable, silent
from kernels.situations import Situation, both_layouts
from strategies import LAYOUTS, same_bits

import npdwconv
from npdwconv.activations import ACTIVATIONS
from npdwconv.device import to_device
from npdwconv.geometry import conv_geometry
from npdwconv.kernels.cuda import fused, fused_spec, provider
from npdwconv.kernels.cuda import separable as planned
from npdwconv.kernels.cuda.product import Tile

pytestmark = needs_cuda

MOST = fused_spec.DEEP.rows  # results that one block owns
SOME = MOST // 2 + 1
PIXELS = fused_spec.DEEP.columns
DEPTH = fused_spec.DEEP.depth


def first(s: Situation) -> Situation:
    """Where channels_last would hold too many sources in registers."""
    return replace(s, layouts=LAYOUTS[:1])


ONE = (  # what one kernel does
    separable("vectors", DEPTH, MOST, (4, 8), (3, 3), padding=1),
    separable("pairs", DEPTH + 2, MOST - 2, (3, 6), (3, 3), padding=1),
    separable("odd", DEPTH + 1, SOME, (5, 7), (3, 3), padding=1),
    separable("one-of-each", 1, 1, (1, 1), (1, 1)),
    separable("two-slices", 2 * DEPTH, MOST - 1, (2, 4), (3, 3), padding=1),
    first(separable("k5", 3, 4, (5, 4), (5, 5), padding=2)),
    separable("s2", DEPTH, MOST, (5, 8), (3, 3), stride=2, padding=1),
    separable("s2-odd", 3, 5, (4, 7), (3, 3), stride=(1, 2), padding=((0, 1), (2, 0))),
    separable("dilated", 2, 3, (5, 8), (3, 3), dilation=(1, 2), padding=((1, 1), (2, 2))),
    separable("no-padding", 3, MOST, (4, 9), (2, 3)),
    first(separable("wider-than-the-image", 2, 2, (2, 3), (3, 5), padding=((2, 2), (4, 3)))),
    separable("one-row", DEPTH, 5, (1, 11), (1, 3), padding=((0, 0), (1, 1))),
    separable("1d", DEPTH, MOST, (2 * PIXELS,), (3,), padding=1),
    separable("1d-causal-k7", 3, 4, (PIXELS + 1,), (7,), padding="causal"),
    first(separable("1d-k18", 2, 2, (PIXELS - 1,), (18,), padding=9)),
)
TWO = (  # what two do
    replace(ONE[5], layouts=LAYOUTS[1:]),
    separable("more-results", 2, MOST + 1, (2, 4), (3, 3), padding=1),
    separable("s3", 2, 3, (4, 7), (3, 3), stride=3, padding=1),
    separable("k27", 1, 2, (2, 28), (1, 27), padding=((0, 0), (13, 13))),
    separable("3d", 1, 2, (2, 2, 3), (2, 1, 3), padding=(1, 0, 1)),
    separable("reflect", 2, 3, (3, 4), (3, 3), padding=1, padding_mode="reflect"),
)


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """The kernels that are launched, by name."""
    names: list[str] = []
    launch = provider.Kernel.__call__

    def watched(kernel: provider.Kernel, *arguments: Any) -> None:
        names.append(kernel.source.name)
        launch(kernel, *arguments)

    monkeypatch.setattr(provider.Kernel, "__call__", watched)
    return names


@pytest.fixture
def allocated(monkeypatch) -> list[int]:
    """The bytes of every array that is made on the device."""
    sizes: list[int] = []
    make = provider.Memory.__init__

    def watched(memory: provider.Memory, size: int, stream: int) -> None:
        sizes.append(size)
        make(memory, size, stream)

    monkeypatch.setattr(provider.Memory, "__init__", watched)
    return sizes


def forward(s: Situation, layout: str, operands: dict[str, Any], **more: Any) -> Any:
    return s.forward(on_device(operands), "cuda", layout, **more)["out"]


def in_two(s: Situation, layout: str, operands: dict[str, Any], **activations: str) -> np.ndarray:
    """The same by the two public calls, for storages in which the middle value is not rounded."""
    given, both = on_device(operands), {"layout": layout, "backend": "cuda"}
    first, second = activations.get("depthwise_activation"), activations.get("activation")
    conv = getattr(npdwconv, s.operator.replace("separable", "depthwise"))
    stage = (given["x"], given["depthwise_weight"], given.get("depthwise_bias"))
    middle = conv(*stage, **s.options, activation=first, **both)
    stage = (middle, given["pointwise_weight"], given.get("bias"))
    return npdwconv.pointwise_conv(*stage, activation=second, **both).copy_to_host()


@both_layouts(*ONE, turns=True)
def test_integers(s: Situation, layout: str):
    exactly(s, layout, depthwise_activation="relu", activation="relu6")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@both_layouts(*ONE[:4], *ONE[6:9], turns=True)
def test_integers_stored_in_halves(s: Situation, layout: str, dtype: str):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16")
    exactly(s, layout, dtype)


@both_layouts(*ONE[:8], turns=True)
def test_floats(s: Situation, layout: str):
    closely(s, layout, "float32", depthwise_activation="silu", activation="gelu")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.sweep)])
@both_layouts(*ONE)
def test_the_bits_are_those_of_two_calls(s: Situation, layout: str, every: bool):
    """With both biases, and for some or every situation with one and none."""
    biases = (("bias", "depthwise_bias"), (), ("depthwise_bias",), ("bias",))
    operands = s.operands("float32", layout)
    for names in biases if every or s in ONE[:2] else biases[:1]:
        given = {name: array for name, array in operands.items() if "bias" not in name or name in names}
        assert same_bits(forward(s, layout, given).copy_to_host(), in_two(s, layout, given)), names


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_activation(layout: str, activation: str):
    s, both = ONE[0], dict.fromkeys(("depthwise_activation", "activation"), activation)
    operands = s.operands("float32", layout)
    assert same_bits(forward(s, layout, operands, **both).copy_to_host(), in_two(s, layout, operands, **both))


@both_layouts(*ONE)
def test_one_kernel_and_no_array_between(s: Situation, layout: str, launched: list[str], allocated: list[int]):
    operands = on_device(s.operands("integers", layout))
    allocated.clear()
    out = s.forward(operands, "cuda", layout)["out"]
    assert launched == ["separable"]
    assert allocated == [out.size * out.dtype.itemsize]


@both_layouts(*TWO)
def test_two_kernels_elsewhere(s: Situation, layout: str, launched: list[str]):
    exactly(s, layout, activation="relu6")
    assert "separable" not in launched
    assert {"gather", "multiply"} <= set(launched)


@pytest.mark.parametrize(("most", "kernels"), [(DEPTH, 1), (DEPTH - 1, 2)])
def test_long_sums_of_few_pixels_take_two_kernels(most: int, kernels: int, monkeypatch, launched: list[str]):
    """One block for the simulator's two multiprocessors."""
    monkeypatch.setattr(fused_spec, "SHORT", most)
    planned._plan.cache_clear()
    s = separable("one-block", DEPTH, MOST, (1, 2), (1, 3), padding=((0, 0), (1, 1)))
    operands = {name: array[:1] if name == "x" else array for name, array in s.operands("integers", LAYOUTS[0]).items()}
    forward(s, LAYOUTS[0], operands)
    planned._plan.cache_clear()
    assert len(launched) == kernels


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64_takes_two_kernels(layout: str, launched: list[str]):
    exactly(ONE[0], layout, "float64")
    assert "separable" not in launched


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_multiplier_takes_two_kernels(layout: str, launched: list[str]):
    shapes = ONE[0].shapes | {"depthwise_weight": (2 * DEPTH, 1, 3, 3), "depthwise_bias": (2 * DEPTH,)}
    s = Situation("m2", "separable_conv2d", shapes | {"pointwise_weight": (MOST, 2 * DEPTH)}, {"padding": 1}, 9)
    exactly(s, layout)
    assert "separable" not in launched


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_the_batch(layout: str):
    """Images together, in tiles that hold parts of several, and each alone; twice."""
    s = ONE[2]
    operands = s.operands("float32", layout)
    together = forward(s, layout, operands).copy_to_host()
    assert same_bits(together, forward(s, layout, operands).copy_to_host())
    for number, image in enumerate(operands["x"]):
        alone = forward(s, layout, operands | {"x": image[None]}).copy_to_host()
        assert same_bits(alone[0], together[number])


@silent
@both_layouts(ONE[0], ONE[2], ONE[6], ONE[11])
def test_what_is_not_finite_goes_where_it_is_read(s: Situation, layout: str):
    rng = np.random.default_rng(4)
    whole = s.operands("integers", layout)
    for turn, name in enumerate([*whole, *whole]):
        operands = {key: array.copy() for key, array in whole.items()}
        operands[name][tuple(int(rng.integers(n)) for n in operands[name].shape)] = (np.inf, np.nan)[turn % 2]
        found, wanted = (
            on_host({"out": forward(s, layout, operands)})["out"],
            s.forward(operands, "reference", layout)["out"],
        )
        assert np.array_equal(found, wanted, equal_nan=True), (turn, name)


@pytest.fixture
def tiles(monkeypatch):
    """Sets the tile, with everything forgotten that depended on it."""

    def change(tile: Tile) -> None:
        for name in ("WIDE", "DEEP"):
            monkeypatch.setattr(fused_spec, name, tile)
        monkeypatch.setattr(fused_spec, "MOST_HELD", 1000)
        planned._plan.cache_clear()

    yield change
    planned._plan.cache_clear()


@pytest.mark.parametrize("tile", [Tile(16, 16, 4, 8, 8), Tile(8, 16, 4, 4, 8), Tile(16, 8, 4, 8, 4)])
@both_layouts(*ONE[:3], ONE[6])
def test_patches_and_tiles_of_other_shapes(s: Situation, layout: str, tile: Tile, tiles, launched: list[str]):
    """Two groups of four in a thread's patch, as on a device, and several parts of a slice a thread."""
    tiles(tile)
    operands = s.operands("integers", layout)
    found = on_host({"out": forward(s, layout, operands)})["out"]
    assert launched == ["separable"]
    assert np.array_equal(found, s.forward(operands, "reference", layout)["out"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_that_begin_between_vectors(layout: str):
    s = ONE[0]
    operands = s.operands("integers", layout)
    wanted = s.forward(operands, "reference", layout)["out"]
    for shifted in operands:
        given, held = on_device(operands), operands[shifted]
        behind = to_device(np.concatenate([np.zeros(1, held.dtype), held.ravel()]))[1:]
        given[shifted] = behind.reshape(held.shape)
        assert np.array_equal(s.forward(given, "cuda", layout)["out"].copy_to_host(), wanted), shifted


def test_no_images_and_no_channels():
    for images, channels in ((0, 2), (1, 0)):
        shapes = {
            "x": (images, channels, 2, 3),
            "depthwise_weight": (channels, 1, 3, 3),
            "pointwise_weight": (3, channels),
        }
        s = Situation("none", "separable_conv2d", shapes | {"bias": (3,)}, {"padding": 1})
        operands = s.operands("integers", "channels_first")
        found = forward(s, "channels_first", operands).copy_to_host()
        assert np.array_equal(found, s.forward(operands, "reference", "channels_first")["out"])


def test_the_source_has_no_array_of_a_thread():
    """Sums are scalars by construction."""
    spec = fused_spec.settled(
        "channels_first",
        conv_geometry((4, 8), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
        frozenset({"float32"}),
        (1, 4, 4, 8),
        (True, True),
        ("", ""),
        (4, 4, 4),
    )
    assert "local.array" not in fused.source(spec).text
    assert fused.source(spec).text.count("syncthreads") == 2
