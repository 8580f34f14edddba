"""Participants that stand in for a framework: ways that are right, wrong, raise, print, end their process or sleep."""

from __future__ import annotations

import os
import time
from functools import partial

import numpy as np

from npdwconv.bench.participant import Way
from npdwconv.pointwise import pointwise_conv

LAYER = "layer channels_first"


def setup(threads):
    print("a framework that talks on standard output", flush=True)
    return f"1.0 with {threads}"


def ways(case, given):
    """The right result under one of our own names too, so that this module can stand in for us."""
    value = pointwise_conv(given["x"], given["weight"], given["bias"], backend="reference")
    yield LAYER, partial(Way, partial(chatty, value), same)
    yield "wrong", partial(Way, lambda: value + np.float32(0.01), same)
    yield "a nan", partial(Way, partial(one_nan, value), same)
    yield "raises", partial(Way, partial(int, "no number"), same)
    yield "cannot be built", partial(int, "no number")
    yield "sleeps", partial(Way, partial(slow, value), same)
    if os.environ.get("BENCH_FAKE_DIES"):
        yield "dies", partial(Way, partial(os._exit, 3), same)


def same(value):
    return value


def chatty(value):
    print("more of it")
    return value


def one_nan(value):
    found = value.copy()
    found.flat[0] = np.nan
    return found


def slow(value):
    time.sleep(0.05)
    return value
