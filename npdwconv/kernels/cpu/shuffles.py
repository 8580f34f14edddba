"""Transposition in registers: rows of a matrix in, its columns out, by shuffles of two vectors at a time."""

from __future__ import annotations

from collections.abc import Sequence

from npdwconv.kernels.cpu.simd import Value, Vectors


def transposed(v: Vectors, values: Sequence[Value]) -> list[Value]:
    """Vectors whose lanes, in order, are the columns of the matrix that has ``values`` as its rows.

    The number of rows is a power of two. Each round interleaves the first half of the rows with the second, which
    moves one bit of the row's number behind the bits of the column's.
    """
    low = [place for lane in range(v.lanes // 2) for place in (lane, v.lanes + lane)]
    high = [place + v.lanes // 2 for place in low]
    rows, half = list(values), len(values) // 2
    for _ in range(half.bit_length()):
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [v.shuffle(a, b, places) for a, b in pairs for places in (low, high)]
    return rows


def square(v: Vectors, rows: Sequence[Value]) -> list[Value]:
    """`transposed` for as many rows as lanes, by the shuffles that processors are fastest at.

    A round takes each two rows whose numbers differ in one bit. Within 128 bits their elements are interleaved; then
    whole runs of 128 bits move, every second of the first row's and of the second's.
    """
    run = min(16 // v.bytes, v.lanes)
    places, result = range(2 * v.lanes), list(rows)
    halves = [[i for i in places if i % run // (run // 2) == half] for half in (0, 1)]
    mixed = [[half[i + j * v.lanes // 2] for i in range(v.lanes // 2) for j in (0, 1)] for half in halves]
    apart = [[i for i in places if i // run % 2 == half] for half in (0, 1)]
    inner, outer = run.bit_length() - 1, v.lanes.bit_length() - 1
    for bit, (low, high) in [*((b, mixed) for b in reversed(range(inner))), *((b, apart) for b in range(inner, outer))]:
        for i in range(v.lanes):
            if not i >> bit & 1:
                a, b = result[i], result[i | 1 << bit]
                result[i], result[i | 1 << bit] = v.shuffle(a, b, low), v.shuffle(a, b, high)
    return result
