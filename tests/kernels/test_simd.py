"""Writing some lanes of a vector, where that is no instruction; what a core's caches hold."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from npdwconv.kernels.cpu import caches, machine, simd
from npdwconv.kernels.cpu.compilation import Kernel
from npdwconv.kernels.cpu.machine import MACHINES
from npdwconv.kernels.cpu.simd import STORED, Vectors, int64
from npdwconv.kernels.cpu.spec import Spec

AVX2 = next(machine for machine in MACHINES if machine.name == "AVX2")
AVX512 = next(machine for machine in MACHINES if machine.name == "AVX-512")
VALUES = 16
NUMPY = {"bfloat16": np.uint16}


@intrinsic
def _put(typing, task, source, target, count):
    """Write the first ``count`` lanes of what is at ``source``."""
    stored, lanes = task.spec.stored, task.spec.lanes

    def generate(context, builder, signature, arguments):
        _, source_, target_, count_ = arguments
        v = Vectors(builder, STORED[stored][2], lanes)
        v.store(v.load(source_, stored), target_, stored, v.between(int64(0), count_))
        return context.get_dummy_value()

    return types.none(task, source, target, count), generate


def _first_lanes(task, item):
    _put(task, task.source, task.target, item)


def written(function, stored, lanes, target, item=0):
    """``target`` after the kernel put lanes of 1, 2, 3, … there, and these numbers."""
    source = np.arange(1, VALUES + 1).astype(target.dtype)
    spec = Spec(("source", "target"), (("stored", stored), ("lanes", lanes)))
    entry = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(Kernel(function).entry(spec))
    block = np.array([source.ctypes.data, target.ctypes.data], np.int64)
    entry(block.ctypes.data, item)
    return target, source


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_the_first_lanes_and_no_other(stored, lanes, monkeypatch):
    monkeypatch.setattr(simd, "machine", lambda: AVX2)
    for count in range(lanes + 1):
        target, source = written(_first_lanes, stored, lanes, np.zeros(VALUES, NUMPY.get(stored, stored)), count)
        np.testing.assert_array_equal(target, np.where(np.arange(VALUES) < count, source, 0))


@intrinsic
def _put_each(typing, task, source, target):
    """Write the first 0, 1, 2, … lanes of what is at ``source``, ``VALUES`` apart."""
    stored, lanes = task.spec.stored, task.spec.lanes

    def generate(context, builder, signature, arguments):
        v = Vectors(builder, STORED[stored][2], lanes)
        value = v.load(arguments[1], stored)
        for count in range(lanes + 1):
            mask = ir.Constant(v.mask, [lane < count for lane in range(lanes)])
            v.store(value, v.at(arguments[2], count * VALUES * STORED[stored][1]), stored, mask)
        return context.get_dummy_value()

    return types.none(task, source, target), generate


def _first_lanes_of_each(task, item):
    _put_each(task, task.source, task.target)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_as_many_lanes_as_is_known(stored, lanes, monkeypatch):
    monkeypatch.setattr(simd, "machine", lambda: AVX2)
    place = np.zeros((lanes + 1, VALUES), NUMPY.get(stored, stored))
    target, source = written(_first_lanes_of_each, stored, lanes, place)
    np.testing.assert_array_equal(target, np.tri(lanes + 1, VALUES, -1) * source)


def described(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def test_the_second_cache(tmp_path, monkeypatch):
    """What Linux says of it; a usual size where there is nothing to read, or nothing that makes sense."""
    monkeypatch.setattr(caches, "CACHES", tmp_path)
    assert caches.second.__wrapped__() == caches.USUAL
    described(tmp_path / "index0", type="Data", level="1", size="32K")
    described(tmp_path / "index1", type="Instruction", level="2", size="64K")
    described(tmp_path / "index2", type="Unified", level="2", size="many")
    described(tmp_path / "index3", type="Unified")
    assert caches.second.__wrapped__() == caches.USUAL
    described(tmp_path / "index4", type="Unified", level="2", size="512K")
    assert caches.second.__wrapped__() == 512 << 10


@pytest.mark.parametrize(
    ("name", "unit", "both"),
    [("znver4", AVX512, False), ("emeraldrapids", AVX512, True), ("znver4", AVX2, True)],
)
def test_vectors_multiplied_in_a_cycle(name, unit, both, monkeypatch):
    """Of 64 bytes a Zen 4 multiplies one."""
    monkeypatch.setattr(machine.config, "CPU_NAME", name)
    monkeypatch.setattr(machine, "machine", lambda: unit)
    assert machine.pairs.__wrapped__() is both
