"""Mistakes to make on purpose, one at a time: `test_mutations.py` has a test fail for each."""

from __future__ import annotations

from cpu_mutations import CPU_MUTATIONS
from mutation import CUDA, VERIFY, Mutation

REFERENCE = "kernels/reference"
INTEROP = "interop"

MUTATIONS = [
    Mutation("gradients of any input's shape are alike", "depthwise.py", "how = (*options, shape)", "how = options"),
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
        "np.ascontiguousarray(product).sum(axis=2, keepdims=True)",
        "product[:, :, :1]",
    ),
    Mutation(
        "weight gradient of one image",
        f"{REFERENCE}/depthwise.py",
        'order="C").sum(axis=(0, ',
        'order="C")[:1].sum(axis=(0, ',
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
    Mutation("middle value rounded", "kernels/chain.py", "shape, accumulator(x.dtype))", "shape, x.dtype)"),
    Mutation("relu6 kink", "activations.py", "_pieces(z, 0.0, 6.0, 1.0, 0.0)", "_pieces(z, 0.0, 6.0, 1.0, 1.0)"),
    Mutation("relu slope at 0", "activations.py", "np.where(z <= low, 0.0, inside)", "np.where(z < low, 0.0, inside)"),
    Mutation("gelu by tanh", "activations.py", "return z * _normal_cdf(z)", "return _gelu_tanh(z)"),
    Mutation(
        "causal state one off",
        "causal.py",
        "dense(history[:, :, kept:])",
        "dense(history[:, :, kept - 1 : history.shape[2] - 1])",
    ),
    Mutation("next state's gradient lost", "causal.py", "length - past :], carried)", "length - past :], 0 * carried)"),
    Mutation("state's gradient shifted", "causal.py", "total[:, :, : taps - 1]", "total[:, :, 1:taps]"),
    Mutation(
        "grid transposed",
        "tokens.py",
        "tokens.reshape(batch, height, width, channels)",
        "tokens.reshape(batch, width, height, channels)",
    ),
    Mutation("fold without the mean", "folding.py", "widened(b) - mean", "widened(b)"),
    Mutation("overlap allowed", "arguments.py", "if _overlap(out, array):", "if False:"),
    Mutation("self-overlap allowed", "arguments.py", "        if _strides_meet(out):", "        if False:"),
    Mutation("True is an int", "options.py", "isinstance(value, bool) or not", "not"),
    Mutation("SAME rounds the extent down", "geometry.py", "max((-(-size // stride) - 1)", "max((size // stride - 1)"),
    Mutation("named padding, extent down", "geometry.py", "out = -(-size // stride) if", "out = size // stride if"),
    Mutation("what no window reaches", "geometry.py", "self.stride + self.span)", "self.stride + self.kernel)"),
    Mutation("border padded twice", "geometry.py", "size=axis.padded, low=0", "size=axis.padded, low=axis.low"),
    Mutation(
        "zeros in place of a border", "geometry.py", 'return self.padding_mode != "zeros"', "return not self.axes"
    ),
    Mutation("reflect pads one too many", "geometry.py", '"reflect": axis.size - 1', '"reflect": axis.size'),
    Mutation("circular pads one too few", "geometry.py", '"circular": axis.size', '"circular": axis.size - 1'),
    Mutation("pads swapped", "options.py", "    return low, high", "    return high, low"),
    Mutation("a stride of 0", "options.py", "if value < least:", "if value < 0:"),
    Mutation("relu6 is relu3", "activations.py", "np.maximum(z, 0), 6)", "np.maximum(z, 0), 3)"),
    Mutation("NaN swallowed", "activations.py", "np.where(np.isnan(z), z,", "np.where(np.isnan(z), 0,"),
    Mutation("silu slope at infinity", "activations.py", "np.clip(z, *_SATURATED) * _sigmoid", "z * _sigmoid"),
    Mutation("gelu slope", "activations.py", "* _INV_SQRT_TAU", "* _SQRT_HALF"),
    Mutation("gelu_tanh constant", "activations.py", "_TANH_CUBIC = 0.044715", "_TANH_CUBIC = 0.044716"),
    Mutation("Lipschitz constant too small", "activations.py", "_hardswish_prime, 1.5)", "_hardswish_prime, 1.0)"),
    Mutation("slope rounded", "plans.py", "plan.shape, accumulator(grad_z.dtype))", "plan.shape, grad_z.dtype)"),
    Mutation(
        "adjoint of padding dropped",
        f"{REFERENCE}/borders.py",
        "+= rows[index]",
        "+= rows[index] * (index == source + axis.low)",
    ),
    Mutation("scatter overwrites", f"{REFERENCE}/depthwise.py", "x[_at(i)] += _fit(", "x[_at(i)] = _fit("),
    Mutation("bias doubled", f"{REFERENCE}/depthwise.py", "= per_channel(", "= 2 * per_channel("),
    Mutation(
        "slope without bias",
        f"{REFERENCE}/depthwise.py",
        "_sum_windows(x, weight, bias, grad_z",
        "_sum_windows(x, weight, None, grad_z",
    ),
    Mutation(
        "padding reads zero",
        f"{REFERENCE}/depthwise.py",
        "weight, channels), source, inner)",
        "weight, channels), np.pad(source, [(0, 0)] * 3 + [(a.low, a.high) for a in inner.axes]), inner.inside())",
    ),
    Mutation("last image only", f"{REFERENCE}/pointwise.py", "total += grad_image", "total = grad_image"),
    Mutation(
        "inner derivative dropped",
        "kernels/chain.py",
        "if depthwise_activation is not None:",
        "if middle is None:",
    ),
    Mutation(
        "middle value not computed",
        "kernels/chain.py",
        "is not None or grad_pointwise_weight is not None:",
        "is not None:",
    ),
    Mutation("eps outside the root", "folding.py", "np.sqrt(var + var.dtype.type(eps))", "(np.sqrt(var) + eps)"),
    Mutation("elements between overlap", "arguments.py", "stride * (extent - 1)", "stride * extent"),
    Mutation("dtypes mix", "arguments.py", "fellow.dtype != array.dtype:", "fellow.dtype.kind != array.dtype.kind:"),
    Mutation("any multiplier", "arguments.py", "outputs != channels * (", "0 * outputs != 0 * channels * ("),
    Mutation("a dense weight passes", "arguments.py", "if shape[1] != 1:", "if shape[1] < 1:"),
    Mutation("extents unchecked", "arguments.py", "if array.shape != shape:", "if array.ndim != len(shape):"),
    Mutation("multiplier before channel", f"{INTEROP}/conventions.py", 'depthwise="* C M"', 'depthwise="* M C"'),
    Mutation("taps not reversed", f"{INTEROP}/conventions.py", "flips_transposed=True,", "flips_transposed=False,"),
    Mutation("any multiplier stored", f"{INTEROP}/conventions.py", "if ours.shape[0] % many:", "if many < 1:"),
    Mutation(
        "ends interleaved",
        f"{INTEROP}/spelling.py",
        "zip(low, high, strict=True))",
        "zip((low + high)[::2], (low + high)[1::2], strict=True))",
    ),
    Mutation("numbers of the schema", f"{INTEROP}/tflite.py", '"RELU_N1_TO_1", "RELU6"', '"RELU6", "RELU_N1_TO_1"'),
    Mutation(
        "unit of the sums halved",
        f"{VERIFY}/bounds.py",
        "24, -126, _FLOAT32[1], 2.0**-24,",
        "24, -126, _FLOAT32[1], 2.0**-25,",
    ),
    Mutation(
        "one term forgotten",
        f"{VERIFY}/bounds.py",
        "rounding = terms * self.precision.unit",
        "rounding = (terms - 1) * self.precision.unit",
    ),
    Mutation(
        "every place a term",
        f"{VERIFY}/bounds.py",
        "function((a.size > 0) * 1.0, (b.size > 0) * 1.0)",
        "function(a.size * 0 + 1.0, b.size * 0 + 1.0)",
    ),
    Mutation("bias not in the bound", f"{VERIFY}/bounds.py", "size + offset.size", "size"),
    Mutation("no underflow", f"{VERIFY}/bounds.py", "+ 2.0 * terms * self.precision.tiny)", ")"),
    Mutation("no overflow", f"{VERIFY}/bounds.py", "| (most >= self.precision.overflow)", ""),
    Mutation("kinks are smooth", f"{VERIFY}/bounds.py", "<= reach) * smooth.jump", "<= reach) * 0.0"),
    Mutation("an activation stretches nothing", f"{VERIFY}/bounds.py", "f.lipschitz * before", "0.1 * before"),
    Mutation(
        "operands are exact",
        f"{VERIFY}/bounds.py",
        "step = np.ldexp(1.0 if self.truncates else 0.5, exponent)",
        "step = 0.0 * exponent",
    ),
    Mutation(
        "results are not stored",
        f"{VERIFY}/bounds.py",
        "hi, error = e.value.hi, e.error + self._stored(e)",
        "hi, error = e.value.hi, e.error",
    ),
    Mutation(
        "rest of a sum lost", f"{VERIFY}/double.py", "(a - (total - part)) + (b - part))", "(a - (total - part)))"
    ),
    Mutation(
        "slices too wide",
        f"{VERIFY}/reference.py",
        "bits = (_DIGITS_OF_SUM - ceil(log2(most))) // 2",
        "bits = _DIGITS_OF_SUM // 2 + 1",
    ),
    Mutation("any function is affine", f"{VERIFY}/gradcheck.py", '"affine", first, second)', '"affine", first, first)'),
    Mutation("phase ignored", f"{CUDA}/relation.py", "divmod(axis.low, axis.stride)", "(axis.low // axis.stride, 0)"),
    Mutation(
        "taps side by side",
        f"{CUDA}/relation.py",
        "offset = target * self.stride + tap * self.dilation",
        "offset = target * self.stride + tap",
    ),
    Mutation(
        "taps between sources", f"{CUDA}/relation.py", "                    if rest:", "                    if False:"
    ),
    Mutation(
        "a tile that is no multiple",
        f"{CUDA}/relation.py",
        "return -(-wanted // self.stride) * self.stride if self.adjoint else wanted",
        "return wanted",
    ),
    Mutation("half a tree", f"{CUDA}/sums.py", 'f"while half >= {lanes}:"', 'f"while half > {lanes}:"'),
    Mutation("one split", f"{CUDA}/sums.py", '"while k < splits:"', '"while k < min(splits, 1):"'),
    Mutation(
        "another channel's input",
        f"{CUDA}/correlate.py",
        '"x = at_x(px, ((n * xs + xc) * ds + iz) * hs * ws)"',
        '"x = at_x(px, ((n * xs + zc) * ds + iz) * hs * ws)"',
    ),
    Mutation("one image", f"{CUDA}/epilogue.py", "items, lanes = images * pixels,", "items, lanes = pixels,"),
    Mutation("infinities beside the image", f"{CUDA}/correlate.py", '"if not finite(sum):"', '"if False:"'),
    Mutation("no barrier between halves", f"{CUDA}/fused.py", '"cuda.syncthreads()", "here = there"', '"here = there"'),
    Mutation("rows below the image", f"{CUDA}/fused.py", '"if p < patches and y < ht:"', '"if p < patches:"'),
    Mutation("fused axes swapped", f"{CUDA}/fused.py", "{r * columns.kernel + s}_{k}", "{s * rows.kernel + r}_{k}"),
    Mutation("memory that is in use", "memory.py", "getrefcount(memory) == alone", "getrefcount(memory) >= alone"),
    *CPU_MUTATIONS,
]
