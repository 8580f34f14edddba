"""The CUDA room's gradient in the bias: a sum over images and pixels, in two passes split by shapes alone."""

from __future__ import annotations

from functools import cache
from math import prod

import numpy as np

from npdwconv.kernels.cuda import provider, sums
from npdwconv.kernels.cuda.entry import Operand, entered, place_of
from npdwconv.kernels.cuda.gather_spec import LANES
from npdwconv.kernels.cuda.provider import Source
from npdwconv.kernels.cuda.source import Text
from npdwconv.kernels.cuda.words import real_of, vocabulary
from npdwconv.layouts import split_shape
from npdwconv.precision import storage

THREADS = 8 if provider.simulated() else 256  # of a block; a power of two
BLOCKS = 1024  # that the first pass aims at
ROUNDS = 8  # elements that a thread adds at least, where blocks are enough
ARGUMENTS = ("pz", "pp", "channels", "pixels", "items", "splits")


@cache
def source(gradient: str, layout: str) -> Source:
    """The first pass: a block's sum of one channel, or of neighbouring ones."""
    first = layout == "channels_first"
    lanes = 1 if first else LANES
    text = Text("add", ARGUMENTS)
    text("thread = cuda.threadIdx.x", "split = cuda.blockIdx.y")
    if first:
        text("channel = cuda.blockIdx.x", f"item = split * {THREADS} + thread")
    else:
        text(
            f"channel = cuda.blockIdx.x * {LANES} + rem(thread, {LANES})",
            f"item = split * {THREADS // LANES} + div(thread, {LANES})",
        )
        with text.block("if channel >= channels:"):
            text("item = items")
    text("sum = zero")
    with text.block("while item < items:"):
        if first:
            text("n = div(item, pixels)", "place = (n * channels + channel) * pixels + item - n * pixels")
        else:
            text("place = item * channels + channel")
        text("sum = sum + read_z(at_z(pz, place), 0)", f"item += splits * {THREADS // lanes}")
    text(f"part = cuda.shared.array({THREADS}, real)")
    sums.tree(text, ["sum"], THREADS, lanes)
    with text.block(f"if thread < {lanes} and channel < channels:"):
        text(f"store_p(at_p(pp, split * channels + channel), 0, {sums.part_of(0, THREADS)})")
    real = real_of(gradient)
    words = vocabulary(z=gradient, p=np.dtype(real).name)
    words.update(zero=real(0), real=real)
    return Source("add", ARGUMENTS, text.text, words)


@cache
def _kernel(gradient: str, layout: str) -> provider.Kernel:
    return provider.Kernel(source(gradient, layout), f"add {gradient} {layout}")


def bias_bwd(grad_z: Operand, grad_bias: Operand, layout: str) -> None:
    """grad_b[k] = Σ_n,pq grad_z[n,k,pq]."""
    with entered((grad_z,), (grad_bias,)) as (grad, result):
        if not result.size:
            return
        images, channels, spatial = split_shape(layout, grad.shape)
        pixels = prod(spatial)
        items, lanes = images * pixels, 1 if layout == "channels_first" else LANES
        blocks = -(-channels // lanes)
        most = max(1, -(-items // (THREADS // lanes * ROUNDS)))
        splits = max(1, min(most, -(-BLOCKS // blocks), 65535))
        partial = result.empty((splits, channels), np.dtype(real_of(storage(grad.dtype))))
        _kernel(storage(grad.dtype), layout)(
            (blocks, splits, 1),
            (THREADS, 1, 1),
            result.stream,
            *(place_of(grad), place_of(partial), channels, max(pixels, 1), items, splits),
        )
        sums.add_up(partial, result)
