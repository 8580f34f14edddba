"""Activations as instructions on a vector."""

from __future__ import annotations

from typing import Any

from npdwconv.kernels.cpu.simd import Value, Vectors


def activate(v: Vectors, name: str, z: Value) -> Value:
    """activation(z); z itself where ``name`` is empty. NaN passes."""
    return ACTIVATE[name](v, z) if name else z


def _relu(v: Vectors, z: Value) -> Value:
    return larger(v, z, v.zero())


def _relu6(v: Vectors, z: Value) -> Value:
    return smaller(v, larger(v, z, v.zero()), v.constant(6.0))


def larger(v: Vectors, z: Value, bound: Value) -> Value:
    """max(z, bound), NaN where z is."""
    return v.builder.select(v.builder.fcmp_ordered(">", bound, z), bound, z)


def smaller(v: Vectors, z: Value, bound: Value) -> Value:
    """min(z, bound), NaN where z is."""
    return v.builder.select(v.builder.fcmp_ordered("<", bound, z), bound, z)


ACTIVATE: dict[str, Any] = {"relu": _relu, "relu6": _relu6}
