"""Results lie where earlier ones lay that nobody holds any more, and never where one does that somebody holds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

import npdwconv as n
from npdwconv import memory
from npdwconv.memory import LARGE, SAME, empty

LIKE = np.empty(0, np.float32)
SHAPE = (LARGE // 4,)


@pytest.fixture(autouse=True)
def _kept(monkeypatch):
    """Nothing is kept before a test, and nothing of a test's after it."""
    monkeypatch.setattr(memory, "KEPT", 10 * LARGE)
    monkeypatch.setattr(memory, "_kept", {})


def address(array):
    return array.ctypes.data


def kept_bytes():
    return sum(size * len(blocks) for size, blocks in memory._kept.items())


def test_memory_that_nobody_holds_is_used_again():
    first = address(empty(LIKE, SHAPE))
    assert [address(empty(LIKE, SHAPE)) for _ in range(3)] == [first] * 3
    assert address(empty(LIKE, (2, SHAPE[0] // 4), np.dtype("float64"))) == first, (
        "as many bytes, another shape and dtype"
    )


HOLD = {
    "itself": lambda array: array,
    "a slice": lambda array: array[3:5],
    "another shape": lambda array: array.reshape(2, -1).T,
    "a memoryview": memoryview,
    "a dtype": lambda array: array.view(np.int32)[:1],
    "DLPack": lambda array: np.from_dlpack(array)[:1],
    "a field of an object": lambda array: SimpleNamespace(array=array),
    "an iterator": iter,
    "its base": lambda array: array.base,
}


@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD)
def test_memory_that_somebody_holds_is_left_alone(hold):
    array = empty(LIKE, SHAPE)
    first, held = address(array), hold(array)
    del array
    assert address(empty(LIKE, SHAPE)) != first
    del held
    found = [empty(LIKE, SHAPE) for _ in range(2)]
    assert first in map(address, found)


def test_results_that_are_held_are_all_different():
    results = [empty(LIKE, SHAPE) for _ in range(3 * SAME)]
    assert len(set(map(address, results))) == len(results)
    assert kept_bytes() == SAME * LARGE


def test_no_more_is_kept_than_may_be():
    for extra in range(40):
        empty(LIKE, (SHAPE[0] + 16 * extra,))
        assert kept_bytes() <= memory.KEPT
    assert len(memory._kept) == 9, "the last ones"
    last = address(empty(LIKE, (SHAPE[0] + 16 * 39,)))
    assert address(empty(LIKE, (SHAPE[0] + 16 * 39,))) == last
    empty(LIKE, (11 * SHAPE[0],))
    assert 11 * LARGE not in memory._kept


def test_counts_that_are_not_exact(monkeypatch):
    monkeypatch.setattr(memory, "_EXACT", False)
    empty(LIKE, SHAPE)
    assert not memory._kept


def test_threads_share_no_result():
    x, weight = np.random.default_rng(0).random((1, 4, 80, 80), np.float32), np.ones((4, 1, 1, 1), np.float32)

    def work(factor: int) -> bool:
        inputs, rights = x * factor, True
        before = n.depthwise_conv2d(inputs, weight)
        for _ in range(30):
            y = n.depthwise_conv2d(inputs, weight)
            rights = rights and np.array_equal(y, inputs) and np.array_equal(before, inputs)
            before = y
        return rights

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
