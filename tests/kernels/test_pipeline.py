"""How kernels are compiled: branches that a spec decides, and functions that become part of a kernel."""

from __future__ import annotations

import ctypes
import re
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from numba.core.errors import TypingError

from npdwconv.kernels.cpu.compilation import Kernel, compiled, inlined
from npdwconv.kernels.cpu.machine import machine
from npdwconv.kernels.cpu.spec import Spec

MANY = 2


def value_of(kernel: Kernel, fields: dict[str, int], item: int = 0, **fixed: int | bool | str) -> int:
    """What the kernel returns, ``fixed`` being compiled in and ``fields`` read when it runs."""
    spec = Spec(tuple(fields), tuple(fixed.items()))
    block = np.array([*fields.values(), 0], np.int64)
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(kernel.entry(spec))
    return function(block.ctypes.data, item)


def _branches(task, item):
    found = 1 if task.wide > MANY else 2
    width = task.wide
    if item > 1:
        width = 5
    if width > MANY:
        found += 3
    if not task.wide:
        found += 10
    elif task.wide == 1 or task.high == 1:
        found += 20
    if -task.high < -1 and task.wide:
        found += 100
    for _ in range(3):
        if task.high != task.wide:
            found += 1000
        if item > 1 and task.high:
            break
    while task.high > MANY:
        return found + 10000
    return found


branches = Kernel(_branches)


def _numbers(task, item):
    total = task.a // task.b
    total = total * 100 + task.a % task.b
    total = total * 100 + task.a - task.b
    total = total * 100 + max(task.a, 1)
    total = total * 100 + min(item, task.b)
    total = total * 100 + task.a * item
    for step in range(item, task.a, task.b):
        total += step
    return total * 8 + (task.a < task.b) * 4 + (task.a == item) * 2 + (item != 0)


numbers = Kernel(_numbers)


@pytest.mark.parametrize("fixed", [(), ("a",), ("b",), ("a", "b")], ids=str)
def test_numbers_are_what_python_makes_of_them(fixed):
    for a, b, item in product((-7, 0, 5), (2, 3), (0, 5)):
        task = {"a": a, "b": b}
        read = {name: value for name, value in task.items() if name not in fixed}
        built = {name: value for name, value in task.items() if name in fixed}
        assert value_of(numbers, read, item, **built) == _numbers(SimpleNamespace(**task), item)


@pytest.mark.parametrize("fixed", [(), ("wide",), ("high",), ("wide", "high")], ids=str)
def test_a_branch_is_the_same_whether_the_spec_or_the_block_decides_it(fixed):
    for wide, high, item in product((0, 1, 3), (0, 1, 3), (0, 2)):
        task = {"wide": wide, "high": high}
        read = {name: value for name, value in task.items() if name not in fixed}
        built = {name: value for name, value in task.items() if name in fixed}
        assert value_of(branches, read, item, **built) == _branches(SimpleNamespace(**task), item), task


def _absent(task, item):
    if task.kind == "plain":
        return 1
    return task.absent


absent = Kernel(_absent)


def _divides(task, item):
    if task.parts > 0:
        if item % task.parts == 0:
            return 1
        if MANY % task.parts == 0:
            return 2
    return 3


divides = Kernel(_divides)


def test_a_division_that_never_happens():
    for parts, item in product((0, 2, 3), (3, 4)):
        assert value_of(divides, {}, item, parts=parts) == _divides(SimpleNamespace(parts=parts), item)


def test_what_a_spec_rules_out_is_not_compiled():
    assert value_of(absent, {}, kind="plain") == 1
    assert value_of(absent, {"absent": 7}, kind="other") == 7
    with pytest.raises(TypingError, match="absent"):
        value_of(absent, {}, kind="other")


@compiled
def _twice(task, number):
    return 2 * number + task.more


@inlined
def _thrice(task, number):
    return _twice(task, number) + number


def _calls(task, item):
    return max(_twice(task, item), 0) * 1000 + _thrice(task, item)


calls = Kernel(_calls)


def test_a_kernel_and_what_it_calls_are_one_piece():
    assert value_of(calls, {"more": 5}, 4) == 13 * 1000 + 17
    assert value_of(calls, {}, 4, more=1) == 9 * 1000 + 13
    assembly = calls.assembly(Spec(("more",), ()))
    assert "test_pipeline6_calls" in assembly
    assert [label for label in re.findall(r"^_ZN.*:$", assembly, re.M) if "wice" in label or "hrice" in label] == []


@pytest.mark.skipif(
    machine().name not in ("AVX2", "AVX-512"), reason="vectors no longer than the stack's own alignment"
)
def test_a_stack_of_vectors_begins_with_one():
    """Where a spec keeps vectors there, they lie within cache lines."""
    begins = re.compile(rf"andq\s+\$-{machine().vector_bytes}, %rsp")
    assert begins.search(calls.assembly(Spec(("more",), (("stacked", True),))))
    assert not begins.search(calls.assembly(Spec(("more",), (("stacked", False),))))
