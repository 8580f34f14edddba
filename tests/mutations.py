"""Mistakes to make on purpose, one at a time: `test_mutations.py` has a test fail for each."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One mistake: what it is, the file in the package, the text that stands there once, and what replaces it."""

    what: str
    file: str
    old: str
    new: str


REFERENCE = "kernels/reference"

MUTATIONS = [
    Mutation(
        "SAME pads the other side",
        "geometry.py",
        "(total // 2, total - total // 2) if",
        "(total - total // 2, total // 2) if",
    ),
    Mutation("SAME ignores the stride", "geometry.py", "* stride + span - size, 0)", "+ span - size, 0)"),
    Mutation("causal pads the high side", "geometry.py", "return span - 1, 0", "return 0, span - 1"),
    Mutation(
        "causal pads every axis", "geometry.py", 'padding == "causal" and not last', 'padding == "causal" and False'
    ),
    Mutation(
        "stride phase one off",
        "geometry.py",
        "start = first * self.stride + offset",
        "start = first * self.stride + offset + 1",
    ),
    Mutation("first output one late", "geometry.py", "-(offset // self.stride))", "-(offset // self.stride) + 1)"),
    Mutation("last output dropped", "geometry.py", "min(self.out - 1,", "min(self.out - 2,"),
    Mutation(
        "dilation ignored in the taps",
        "geometry.py",
        "offset = tap * self.dilation - self.low",
        "offset = tap - self.low",
    ),
    Mutation("high pad for low", "geometry.py", "tap * self.dilation - self.low", "tap * self.dilation - self.high"),
    Mutation("output padding dropped", "geometry.py", "span - low - high + extra", "span - low - high"),
    Mutation(
        "kernel flipped",
        f"{REFERENCE}/depthwise.py",
        "tap: Array = weight[_at(t)]",
        "tap: Array = weight[_at(tuple(-1 - i for i in t))]",
    ),
    Mutation(
        "multiplier order",
        "layouts.py",
        "return view.reshape(view.shape[0], groups, each, *view.shape[2:])",
        "return view.reshape(view.shape[0], each, groups, *view.shape[2:]).swapaxes(1, 2)",
    ),
    Mutation(
        "bias order",
        "layouts.py",
        "return vector.reshape(groups, each, *(1,) * rank)",
        "return vector.reshape(each, groups, *(1,) * rank).swapaxes(0, 1)",
    ),
    Mutation(
        "channel axis of channels_last", "layouts.py", "np.moveaxis(array, -1, 1)", "np.moveaxis(array, -1, 1)[:, ::-1]"
    ),
    Mutation(
        "sum over the multiplier lost",
        f"{REFERENCE}/depthwise.py",
        "product.sum(axis=2, keepdims=True)",
        "product[:, :, :1]",
    ),
    Mutation(
        "weight gradient of one image",
        f"{REFERENCE}/depthwise.py",
        "(z[_at(o)] * x[_at(i)]).sum(axis=(0, ",
        "(z[_at(o)] * x[_at(i)])[:1].sum(axis=(0, ",
    ),
    Mutation(
        "bias gradient of one image",
        f"{REFERENCE}/epilogue.py",
        "grad_bias[...] = view.sum(",
        "grad_bias[...] = view[:1].sum(",
    ),
    Mutation(
        "activation derivative dropped",
        f"{REFERENCE}/epilogue.py",
        "widened(grad_out) * activation.derivative(z)",
        "widened(grad_out)",
    ),
    Mutation(
        "rounded twice",
        f"{REFERENCE}/epilogue.py",
        "out[...] = z if activation is None",
        "z = z.astype(out.dtype).astype(z.dtype)\n    out[...] = z if activation is None",
    ),
    Mutation("sums in 16 bits", "precision.py", '"float16": np.float32', '"float16": np.float16'),
    Mutation(
        "reflect repeats the edge",
        f"{REFERENCE}/borders.py",
        "last - abs(last - abs(index))",
        "np.clip(last - abs(last - abs(index)) + (index < 0) * -1, 0, last)",
    ),
    Mutation(
        "circular one off", f"{REFERENCE}/borders.py", "return index % axis.size", "return (index + 1) % axis.size"
    ),
    Mutation(
        "replicate is circular", f"{REFERENCE}/borders.py", "return np.clip(index, 0, last)", "return index % axis.size"
    ),
    Mutation(
        "adjoint of padding overwrites",
        f"{REFERENCE}/borders.py",
        "total[source] += rows[index]",
        "total[source] = rows[index]",
    ),
    Mutation(
        "pointwise weight untransposed",
        f"{REFERENCE}/pointwise.py",
        "_product(grad_z, weight.T, None",
        "_product(grad_z, weight.reshape(weight.shape[::-1]), None",
    ),
    Mutation(
        "pointwise bias lost",
        f"{REFERENCE}/pointwise.py",
        "biased: Array = z if b is None else z + b",
        "biased: Array = z",
    ),
    Mutation("middle value rounded", f"{REFERENCE}/separable.py", "dtype=accumulator(x.dtype))", "dtype=x.dtype)"),
    Mutation("relu6 kink", "activations.py", "_pieces(z, 0.0, 6.0, 1.0, 0.0)", "_pieces(z, 0.0, 6.0, 1.0, 1.0)"),
    Mutation("relu slope at 0", "activations.py", "np.where(z <= low, 0.0, inside)", "np.where(z < low, 0.0, inside)"),
    Mutation("gelu by tanh", "activations.py", "return z * _normal_cdf(z)", "return _gelu_tanh(z)"),
    Mutation(
        "causal state one off",
        "causal.py",
        "np.ascontiguousarray(history[:, :, kept:])",
        "np.ascontiguousarray(np.roll(history, 1, 2)[:, :, kept:])",
    ),
    Mutation("next state's gradient lost", "causal.py", "+= carried", "+= 0 * carried"),
    Mutation("state's gradient shifted", "causal.py", "total[:, :, : taps - 1]", "total[:, :, 1:taps]"),
    Mutation(
        "grid transposed",
        "tokens.py",
        "tokens.reshape(batch, height, width, channels)",
        "tokens.reshape(batch, width, height, channels)",
    ),
    Mutation("fold without the mean", "folding.py", "widened(b) - mean", "widened(b)"),
    Mutation("overlap allowed", "arguments.py", "if _overlap(out, array):", "if False:"),
    Mutation("self-overlap allowed", "arguments.py", "if _overlaps_itself(out):", "if False:"),
    Mutation("True is an int", "options.py", "isinstance(value, bool) or not", "not"),
]
