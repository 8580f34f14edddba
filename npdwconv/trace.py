"""Watching room: what each layer of a network is given and how long it takes, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from npdwconv.layers import Layer

__all__ = ["Step", "watched"]

Tell = Callable[[str], None]


@dataclass
class Step:
    """One layer of a network at work: its place, the last input's shape, and seconds spent so far."""

    name: str
    layer: Layer
    input_shape: tuple[int, ...] = ()
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0


@contextmanager
def watched(network: Layer, tell: Tell = lambda name: None) -> Iterator[list[Step]]:
    """Inside, every call of a leaf of ``network`` is timed; afterwards the network is as it was.

    Args:
        network: a layer; its leaves are those that ``walk`` names.
        tell: called with a leaf's name whenever that leaf has finished.

    Returns:
        One step a leaf, in the order of the forward pass, filled in by the calls made inside.

    >>> import numpy as np
    >>> from npdwconv.layers import PointwiseConv
    >>> layer = PointwiseConv(3, 4)
    >>> with watched(layer) as (step,):
    ...     _ = layer(np.ones((1, 3, 2, 2), np.float32))
    >>> step.input_shape, step.forward_seconds > 0, step.backward_seconds
    ((1, 3, 2, 2), True, 0.0)
    """
    steps = [Step(name, leaf) for name, leaf in network.walk() if isinstance(leaf, Layer)]
    for step in steps:
        # On the instance, where it hides the class's method until it is deleted again.
        vars(step.layer).update(forward=_timed_forward(step, tell), backward=_timed_backward(step, tell))
    try:
        yield steps
    finally:
        for step in steps:
            del vars(step.layer)["forward"], vars(step.layer)["backward"]


def _timed_forward(step: Step, tell: Tell) -> Callable[[Any], Any]:
    forward = step.layer.forward

    def timed(x: Any) -> Any:
        start = perf_counter()
        result = forward(x)
        step.forward_seconds += perf_counter() - start
        step.input_shape = tuple(x.shape)
        tell(step.name)
        return result

    return timed


def _timed_backward(step: Step, tell: Tell) -> Callable[[Any], Any]:
    backward = step.layer.backward

    def timed(grad_out: Any) -> Any:
        start = perf_counter()
        result = backward(grad_out)
        step.backward_seconds += perf_counter() - start
        tell(step.name)
        return result

    return timed
