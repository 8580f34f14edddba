"""How the work is cut, made visible on small arrays: more launches, more blocks, fewer of them, nothing staged."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from cuda_calls import C, depthwise, exactly, needs_cuda, pointwise, transposed
from kernels.situations import Situation, both_layouts
from strategies import same_bits

import npdwconv
from npdwconv.device import DeviceArray, to_device
from npdwconv.kernels.cuda import correlate, epilogue, gather, gather_spec
from npdwconv.kernels.cuda import depthwise as planned
from npdwconv.kernels.cuda import pointwise as products

pytestmark = needs_cuda

WIDE = 4 * C


@pytest.fixture
def cut(monkeypatch):
    """Sets a number by which kernels and launches are cut, with everything forgotten that depended on it."""

    def forget() -> None:
        for module in (correlate, planned, gather, epilogue, products):
            for value in vars(module).values():
                getattr(value, "cache_clear", lambda: None)()

    def change(module: ModuleType, name: str, value: int) -> None:
        monkeypatch.setattr(module, name, value)
        forget()

    forget()
    yield change
    monkeypatch.undo()
    forget()


@both_layouts(
    depthwise("depthwise", 2, (3, WIDE), (3, 3), padding=1),
    depthwise("3d", 1, (2, 2, 3), (2, 1, 3), padding=1),
    transposed("transpose", 1, (2, 3), (3, 3), stride=2),
)
def test_several_launches(s: Situation, layout: str, cut):
    cut(gather_spec, "MOST_ITEMS", 3)
    exactly(s, layout)


@both_layouts(
    depthwise("vectors", C, (3, 4), (3, 3), padding=1),
    depthwise("3d", 3, (2, 2, 3), (2, 1, 3), padding=1),
    turns=False,
)
def test_kernels_that_shared_memory_cannot_hold(s: Situation, layout: str, cut):
    cut(gather, "MOST_SHARED", 0)
    exactly(s, layout)


# images of 1·W pixels, and the blocks that a gradient's sum is then split into: none, two, and more than are unrolled
SPLITS = tuple(depthwise(f"w{w}", 1, (1, w), (1, 2)) for w in (3, 2 * WIDE, 9 * WIDE))


@pytest.mark.parametrize("most", [1, 3, 1000])
@both_layouts(*SPLITS, turns=False)
def test_gradients_in_any_number_of_parts(s: Situation, layout: str, most: int, cut):
    for module in (correlate, epilogue):
        cut(module, "ROUNDS", 1)
        cut(module, "BLOCKS", most)
    exactly(s, layout)


@pytest.mark.parametrize("most", [1, 2, 3])
@both_layouts(pointwise("pointwise", 3, 2, (5,), 5))
def test_products_over_images_dealt_out(s: Situation, layout: str, most: int, cut):
    cut(products, "BLOCKS", most)
    exactly(s, layout)


@both_layouts(pointwise("many-pixels", 2, 1, (2, 260), 1))
def test_products_over_pieces_of_the_pixels(s: Situation, layout: str):
    exactly(s, layout)


# where arrays begin


def shifted(array: np.ndarray) -> DeviceArray:
    """A contiguous array that begins one element after where a vector could."""
    return to_device(np.concatenate([np.zeros(1, array.dtype), array.ravel()]))[1:].reshape(array.shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_arrays_that_begin_between_vectors(layout: str, dtype: str):
    s = depthwise("vectors", C, (2, 4), (1, 3), padding=((0, 0), (1, 1)))
    operands = {name: array.astype(dtype) for name, array in s.operands("integers", layout).items()}
    wanted = s.forward(operands, "reference", layout)
    behind = {name: array.astype(dtype) for name, array in s.gradients(wanted, "integers").items()}
    wanted |= s.backward(operands, behind, "reference", layout)
    plain, back = ({name: to_device(array) for name, array in group.items()} for group in (operands, behind))
    for name in (*plain, *back):
        group = plain if name in plain else back
        held = group[name]
        group[name] = shifted((operands | behind)[name])
        assert group[name].contiguous
        assert group[name].address % (2 * held.itemsize)
        found = s.forward(plain, "cuda", layout) if name in plain else {}
        found |= s.backward(plain, back, "cuda", layout) if name in ("x", "grad_out") else {}
        assert all(same_bits(array.copy_to_host(), wanted[result]) for result, array in found.items()), name
        group[name] = held
    out = shifted(np.zeros_like(wanted["out"]))
    assert npdwconv.depthwise_conv2d(**plain, **s.options, layout=layout, backend="cuda", out=out) is out
    assert same_bits(out.copy_to_host(), wanted["out"])
