"""Defects: what makes a layer's result wrong, and which data cannot show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from planted_layers import Array, Layer, Results, activate, biased, compute, read, taps

Plant = Callable[[Layer], Results | None]


@dataclass(frozen=True)
class Defect:
    """``plant`` makes the wrong result of a layer, None where it cannot be made; ``blind`` is data that hides it."""

    name: str
    what: str
    plant: Plant
    blind: Callable[[Layer], Layer]

    def at(self, layer: Layer, t: float) -> tuple[Layer, Results | None]:
        other = blend(self.blind(layer), layer, t)
        return other, self.plant(other)


@dataclass(frozen=True)
class Added(Defect):
    """A defect whose size is chosen, on the layer's own data: between its right result and the planted one."""

    blind: Callable[[Layer], Layer] = field(default=lambda layer: zeroed(layer))

    def at(self, layer: Layer, t: float) -> tuple[Layer, Results | None]:
        right, wrong = compute(layer), self.plant(layer)
        if wrong is None:
            return layer, None
        return layer, {
            name: right[name] + (right[name].dtype.type(t) * (array - right[name])) if t < 1 else array
            for name, array in wrong.items()
        }


def blend(near: Layer, far: Layer, t: float) -> Layer:
    """Operands on the way from one layer to another."""

    def between(one: Array | None, other: Array | None) -> Array | None:
        if one is None or other is None:
            return other
        wide = one.astype(np.float64)
        return other if t >= 1 else (wide + t * (other.astype(np.float64) - wide)).astype(other.dtype)

    names = ("x", "weight", "bias", "grad")
    return replace(far, **{name: between(getattr(near, name), getattr(far, name)) for name in names})


def per(layer: Layer, name: str, change: Callable[[Array], Array]) -> Layer:
    array = getattr(layer, name)
    return layer if array is None else replace(layer, **{name: change(array).astype(array.dtype)})


def zeroed(layer: Layer) -> Layer:
    for name in ("x", "weight", "bias", "grad"):
        layer = per(layer, name, np.zeros_like)
    return layer


def flat(layer: Layer, *axes: int) -> Layer:
    """Operands constant along axes of activations; of the channels, all operands alike."""
    for name in ("x", "grad"):
        layer = per(layer, name, lambda array: np.broadcast_to(array.mean(axis=axes, keepdims=True), array.shape))
    if 1 in axes:
        for name in ("weight", "bias"):
            layer = per(layer, name, lambda array: np.broadcast_to(array.mean(axis=0, keepdims=True), array.shape))
    return layer


def depthwise(plant: Callable[[Layer], Results | None]) -> Plant:
    return lambda layer: None if layer.pointwise else plant(layer)


def flipped(layer: Layer, *axes: int) -> Results | None:
    return compute(replace(layer, weight=np.ascontiguousarray(np.flip(layer.weight, axes))))


def symmetric(layer: Layer) -> Layer:
    if layer.pointwise:
        return layer
    groups = [np.flip(layer.weight, axes) for axes in ((), (2,), (3,), (2, 3))]
    return replace(layer, weight=np.mean(groups, axis=0).astype(layer.weight.dtype))


def transposed(layer: Layer) -> Layer:
    return per(layer, "weight", lambda w: w if w.ndim < 4 else (w + w.swapaxes(2, 3)) / 2)


def shifted(layer: Layer, *steps: int) -> Results | None:
    return compute(layer, lows=tuple(low - step for (low, _), step in zip(layer.pads, steps, strict=True)))


def unmoved(layer: Layer) -> Layer:
    """Wherever the windows lie: a bias and nothing else; of gradients, pairs of terms that cancel."""
    if layer.grad is None:
        return per(layer, "x", np.zeros_like)
    layer = per(layer, "x", lambda x: np.concatenate([x[:1], -x[:1]]))  # two images
    layer = per(layer, "weight", lambda w: np.repeat(w[::2], 2, axis=0) * np.resize([1, -1], (len(w), 1, 1, 1)))
    return per(layer, "grad", lambda grad: np.repeat(grad[:1, ::2], 2, axis=1).repeat(2, axis=0))


def other_sides(layer: Layer) -> Results | None:
    if layer.pointwise or all(low == high for low, high in layer.pads):
        return None
    return compute(layer, lows=tuple(high for _, high in layer.pads))


def other_mode(layer: Layer) -> Results | None:
    mode = "reflect" if layer.mode == "zeros" else "zeros"
    return compute(replace(layer, mode=mode)) if any(map(any, layer.pads)) else None


def undilated(layer: Layer) -> Results | None:
    return compute(layer, dilation=1) if layer.dilation > 1 else None


def modulo(layer: Layer) -> Results | None:
    if layer.fan == 1:
        return None
    return compute(layer, source=np.arange(len(layer.weight)) % layer.x.shape[1])


def permuted(layer: Layer, order: Callable[[int], Array]) -> Results:
    right = compute(layer)
    return {name: array[:, order(array.shape[1])] if name != "weight" else array for name, array in right.items()}


def crossed_inputs(layer: Layer) -> Results | None:
    if layer.fan > 1 or layer.grad is not None:
        return None
    return compute(replace(layer, x=layer.x[:, ::-1]))


def other_images(layer: Layer) -> Results | None:
    if len(layer.x) < 2:
        return None
    return {name: array[::-1] if name != "weight" else array for name, array in compute(layer).items()}


def misread(layer: Layer) -> Results:
    n, c, h, w = layer.x.shape
    if layer.layout == "channels_first":
        other = layer.x.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    else:
        other = np.moveaxis(layer.x, 1, -1).reshape(n, c, h, w)
    return compute(replace(layer, x=np.ascontiguousarray(other)))


def stored_last(layer: Layer) -> Results:
    w = layer.weight
    if layer.pointwise:
        return compute(replace(layer, weight=np.ascontiguousarray(w.T).reshape(w.shape)))
    return compute(replace(layer, weight=np.ascontiguousarray(w[:, 0].transpose(1, 2, 0)).reshape(w.shape)))


def with_bias(layer: Layer, times: int) -> Results | None:
    if layer.bias is None or layer.grad is not None:
        return None
    return compute(replace(layer, bias=layer.bias * layer.bias.dtype.type(times)))


def other_bias(layer: Layer) -> Results | None:
    if layer.bias is None or layer.grad is not None:
        return None
    factors = np.random.default_rng(6).uniform(0.2, 1.8, len(layer.bias)).astype(layer.bias.dtype)
    return compute(replace(layer, bias=layer.bias * factors))


def with_activation(layer: Layer, name: str | None) -> Results | None:
    if layer.grad is not None or layer.activation == name:
        return None
    return compute(replace(layer, activation=name))


def between_kinks(layer: Layer) -> Layer:
    """Sums between 0 and 6, above 3 for a hardswish, which is another function below."""
    positive = replace(per(per(layer, "x", np.abs), "weight", np.abs), activation=None)
    plain = compute(replace(positive, bias=None))["out"] if layer.grad is None else np.ones(1)
    shrunk = per(positive, "weight", lambda w: w * min(1.0, 4.0 / max(float(plain.max()), 1e-30)))
    least = 3.5 if layer.activation == "hardswish" else 0.5
    return replace(per(shrunk, "bias", lambda b: np.full_like(b, least)), activation=layer.activation)


def bits(array: Array, digits: int, *, up: bool = True) -> Array:
    """float32 numbers to so many digits by their bits: to nearest, ties to even, or truncated."""
    drop = 24 - digits
    words = array.astype(np.float32).view(np.uint32)
    if up:
        words = words + np.uint32((1 << (drop - 1)) - 1) + ((words >> np.uint32(drop)) & np.uint32(1))
    return (words >> np.uint32(drop) << np.uint32(drop)).view(np.float32)


def coarse(layer: Layer, digits: int, *, up: bool = True) -> Layer:
    for name in ("x", "weight", "grad"):
        layer = per(layer, name, lambda array: bits(array, digits, up=up))
    return layer


def whole_numbers(layer: Layer) -> Layer:
    """Integers so small that no sum of their products is rounded."""
    for name, size in (("x", 2), ("weight", 1), ("bias", 2), ("grad", 2)):
        layer = per(layer, name, lambda array, size=size: np.clip(np.rint(array), -size, size))
    if layer.pointwise:
        kept = np.arange(layer.weight.shape[1]) < 30
        layer = per(layer, "weight", lambda w: w * kept)
    return layer


def summed(layer: Layer, rounds: Callable[[Array], Array]) -> Results | None:
    """A forward whose sum is rounded after every product; the bias and the activation are exact."""
    if layer.grad is not None or layer.activation not in (None, "relu", "relu6"):
        return None
    if layer.pointwise:
        z = np.zeros((len(layer.x), len(layer.weight), *layer.x.shape[2:]), np.float32)
        for c in range(layer.x.shape[1]):
            z = rounds(z + layer.weight[:, c][:, None, None] * layer.x[:, c : c + 1])
    else:
        z = np.zeros((len(layer.x), len(layer.weight), *layer.out), np.float32)
        own = np.arange(len(layer.weight)) // layer.fan
        for (r, s), rows, columns in taps(layer, tuple(low for low, _ in layer.pads), layer.dilation):
            z = rounds(z + layer.weight[:, 0, r, s][:, None, None] * read(layer.x, rows, columns)[:, own])
    return {"out": activate(layer.activation, biased(z, layer.bias))}


def half(array: Array) -> Array:
    return array.astype(np.float16).astype(np.float32)


def scaled(layer: Layer) -> Results:
    return {name: array * array.dtype.type(1.5) for name, array in compute(layer).items()}


def normed(layer: Layer) -> Results | None:
    """A batch norm folded with another eps: each channel's weights have a factor of their own."""
    if layer.grad is not None or layer.activation not in (None, "relu", "relu6"):
        return None
    factors = np.random.default_rng(5).uniform(0.5, 1.5, len(layer.weight)).astype(layer.weight.dtype)
    return compute(replace(layer, weight=layer.weight * factors.reshape(-1, *[1] * (layer.weight.ndim - 1))))


def damaged(layer: Layer, place: Callable[[Array], Array]) -> Results:
    results = compute(layer)
    name = next(iter(results))
    array, size = results[name].copy(), float(np.abs(results[name]).max()) or 1.0
    rng = np.random.default_rng(4)
    noise = rng.choice([-1.0, 1.0], array.shape) * rng.uniform(0.5, 1.0, array.shape) * size
    view = place(array)
    view += place(noise).astype(array.dtype)
    return results | {name: array}


def replaced_by(layer: Layer, value: float, place: Callable[[Array], Array]) -> Results:
    results = compute(layer)
    name = next(iter(results))
    array = results[name].copy()
    place(array)[...] = value
    return results | {name: array}


def plateau(layer: Layer) -> Layer:
    """Results that are the same everywhere inside: the constant that was never overwritten is right."""
    return flat(layer, 0, 1, 2, 3)


def left_over(layer: Layer) -> Results:
    constant = compute(plateau(layer))
    name = next(iter(constant))
    middle = constant[name][0, 0, constant[name].shape[2] // 2, constant[name].shape[3] // 2]
    return replaced_by(layer, float(middle), lambda array: array[:, :, 4:7, 3:])


def reverse(count: int) -> Array:
    return np.arange(count)[::-1]


def shuffle(count: int) -> Array:
    return np.random.default_rng(3).permutation(count)


DEFECTS = (
    Defect("kernel_flipped", "both axes", depthwise(lambda layer: flipped(layer, 2, 3)), symmetric),
    Defect("kernel_flipped", "width", depthwise(lambda layer: flipped(layer, 3)), symmetric),
    Defect(
        "kernel_axes_swapped",
        "R and S",
        depthwise(lambda layer: compute(replace(layer, weight=np.ascontiguousarray(layer.weight.swapaxes(2, 3))))),
        transposed,
    ),
    Defect("padding_side", "swapped", other_sides, unmoved),
    Defect("padding_mode", "another", depthwise(other_mode), unmoved),
    Defect("stride_phase", "late", depthwise(lambda layer: shifted(layer, 1, 1)), unmoved),
    Defect("stride_phase", "early in width", depthwise(lambda layer: shifted(layer, 0, -1)), unmoved),
    Defect("dilation_ignored", "first tap", depthwise(undilated), unmoved),
    Defect("multiplier_order", "k mod C", depthwise(modulo), lambda layer: flat(layer, 1)),
    Defect("channels_permuted", "reversed", lambda layer: permuted(layer, reverse), lambda layer: flat(layer, 1)),
    Defect("channels_permuted", "shuffled", lambda layer: permuted(layer, shuffle), lambda layer: flat(layer, 1)),
    Defect("channels_permuted", "inputs reversed", crossed_inputs, lambda layer: flat(layer, 1)),
    Defect("images_permuted", "reversed", other_images, lambda layer: flat(layer, 0)),
    Defect("layout_misread", "of x", misread, lambda layer: flat(layer, 0, 1, 2, 3)),
    Defect("weight_layout", "HWC as CHW", stored_last, lambda layer: per(layer, "weight", lambda w: w * 0 + w.mean())),
    Defect("bias_missing", "", lambda layer: with_bias(layer, 0), lambda layer: per(layer, "bias", np.zeros_like)),
    Defect("bias_doubled", "", lambda layer: with_bias(layer, 2), lambda layer: per(layer, "bias", np.zeros_like)),
    Defect("activation_missing", "", lambda layer: with_activation(layer, None), between_kinks),
    Defect("activation_swapped", "relu", lambda layer: with_activation(layer, "relu"), between_kinks),
    Added("scale", "by 1.5", scaled),
    Defect("scale", "another eps", normed, lambda layer: per(layer, "weight", np.zeros_like)),
    Defect("offset", "another bias", other_bias, lambda layer: per(layer, "bias", np.zeros_like)),
    Defect("tf32_inputs", "nearest", lambda layer: compute(coarse(layer, 11)), lambda layer: coarse(layer, 8)),
    Defect("tf32_inputs", "truncated", lambda layer: compute(coarse(layer, 11, up=False)), lambda x: coarse(x, 8)),
    Defect("bfloat16_inputs", "nearest", lambda layer: compute(coarse(layer, 8)), lambda layer: coarse(layer, 5)),
    Defect("bfloat16_accumulation", "", lambda layer: summed(layer, lambda z: bits(z, 8)), whole_numbers),
    Defect("float16_compute", "operands", lambda layer: compute(halved(layer)), lambda layer: coarse(layer, 5)),
    Defect("float16_compute", "sums", lambda layer: summed(layer, half), whole_numbers),
    Added("local_defect", "an element", lambda layer: damaged(layer, lambda a: a[:1, 1:2, 2:3, 1:2])),
    Added("local_defect", "a row", lambda layer: damaged(layer, lambda a: a[:, :, 3:4])),
    Added("local_defect", "every 4th column", lambda layer: damaged(layer, lambda a: a[:, :, :, 3::4])),
    Added("local_defect", "a channel", lambda layer: damaged(layer, lambda a: a[:, 2:3])),
    Added("unwritten", "NaN", lambda layer: replaced_by(layer, np.nan, lambda a: a[:, :, -2:])),
    Added("unwritten", "zeros", lambda layer: replaced_by(layer, 0.0, lambda a: a[:, 1:3])),
    Defect("unwritten", "a constant", left_over, plateau),
)
FIXED = {("unwritten", "NaN"), ("unwritten", "zeros")}  # have no size


def halved(layer: Layer) -> Layer:
    for name in ("x", "weight", "grad"):
        layer = per(layer, name, half)
    return layer
