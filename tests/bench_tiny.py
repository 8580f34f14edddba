"""Small cases of every operation that the bench measures, and settings that take no time."""

from __future__ import annotations

from dataclasses import replace

from npdwconv.bench.cases import OPERATIONS, Case
from npdwconv.bench.measure import Settings

SMALL = Case("pointwise_fwd", 2, 6, (5, 4), outputs=7)
DEPTHWISE = Case("depthwise_fwd", 2, 3, (7, 6), 3, 2)
TINY = [
    DEPTHWISE,
    Case("depthwise_fwd", 1, 3, (9,), 4, causal=True),
    Case("depthwise_fwd", 1, 3, (8, 8), 3, dilation=2),
    Case("depthwise_fwd", 1, 2, (8, 7), 5, 2, multiplier=2),
    *(replace(DEPTHWISE, operation=name) for name in OPERATIONS[1:3]),
    *(replace(Case("depthwise_fwd", 1, 2, (8, 7), 5, 2, multiplier=2), operation=name) for name in OPERATIONS[1:3]),
    *(replace(SMALL, operation=name) for name in OPERATIONS[3:6]),
    Case("separable_fwd", 2, 3, (6, 6), 3, outputs=5),
    Case("tokens_fwd", 2, 4, (4, 5), 3),
]
SETTINGS = Settings(threads=1, rounds=2, seconds=0.002, warm=0.0, backend="reference")
