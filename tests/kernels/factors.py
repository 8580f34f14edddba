"""A check that both layouts share: what a result is multiplied by may be the array that is overwritten."""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.activations import ACTIVATIONS
from npdwconv.kernels.cpu import depthwise
from npdwconv.kernels.reference import depthwise as reference


def multiplied_once(case: Any, layout: str) -> None:
    """The slope of hardswish is not only 0 and 1, whose squares they are."""
    grad_out = np.full_like(case.z, 2)
    wanted, given = np.empty_like(case.z), grad_out.copy()
    rest = (case.g, layout, ACTIVATIONS["hardswish"])
    reference.depthwise_bwd_activation(grad_out, case.x, case.weight, case.bias, wanted, *rest)
    depthwise.depthwise_bwd_activation(given, case.x, case.weight, case.bias, given, *rest)
    assert not np.isin(wanted, (0, 2)).all()
    np.testing.assert_allclose(given, wanted, rtol=1e-6)
