"""Set-up that tests of several kernels share."""

from __future__ import annotations

import pytest

from npdwconv.kernels.cpu import caches, channels_first, channels_last, pointwise, strips, weight_gradient

PLANNED = channels_first.launches, channels_last.launches, pointwise._plan, strips.strips, weight_gradient._plan


@pytest.fixture
def replanned():
    """What was planned before is planned anew, and once more afterwards, whatever happens meanwhile."""
    for planned in PLANNED:
        planned.cache_clear()
    yield
    for planned in PLANNED:
        planned.cache_clear()


@pytest.fixture
def far(monkeypatch, replanned):
    """Operands count as lying in memory, however few they are."""
    monkeypatch.setattr(caches, "FAR", 0)
