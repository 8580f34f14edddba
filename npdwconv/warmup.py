"""Warm-up room: compiles ahead what named calls need, by making them once on zeros."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import numpy as np

from npdwconv import causal, depthwise, pointwise, separable, tokens, transpose
from npdwconv.activations import ACTIVATIONS
from npdwconv.dispatch import require_usable, use_backend
from npdwconv.errors import OptionError
from npdwconv.kernels.watchers import Compiling, watching
from npdwconv.layouts import LAYOUTS, shape_of
from npdwconv.options import PADDING_NAMES, one_of
from npdwconv.precision import ACCUMULATORS

# model -> where it is, and the shape (N, C, H, W) that it takes where none is given
MODELS = {"efficientnet-lite0": ("npdwconv.models", "EfficientNetLite0", (1, 3, 224, 224))}
# kind -> the module and the name of its operator
OPERATORS: dict[str, tuple[Any, str]] = {
    "depthwise": (depthwise, "depthwise_conv{}d"),
    "transpose": (transpose, "depthwise_conv_transpose{}d"),
    "pointwise": (pointwise, "pointwise_conv"),
    "separable": (separable, "separable_conv{}d"),
    "tokens": (tokens, "depthwise_conv_tokens"),
    "causal": (causal, "causal_depthwise_conv1d"),
}
PATIENCE = 1.0  # seconds of compiling before anything is said


class Warmed(NamedTuple):
    """A call, how many kernels were compiled for it (0: all were found on disk), and how long it took."""

    call: str
    compiled: int
    seconds: float


def warmup(*calls: str, layout: str = "channels_first", dtype: str = "float32", backward: bool = False) -> list[Warmed]:
    """Compile ahead what calls of the numba backend need, and keep it on disk for every later process.

    A call is ``kind:shape:part:part…``: a kind (depthwise, transpose, pointwise, separable, tokens or causal), the
    shape of ``x`` as NxCxW, NxCxHxW or NxCxDxHxW whatever the layout (tokens: NxCxHxW, the grid), and in any order
    ``k3`` or ``k3x5`` the kernel (default 3, causal 4), ``s2`` the stride, ``d2`` the dilation, ``p1`` or ``psame``
    the padding (default: kernel // 2), ``m2`` the depth multiplier, ``o64`` the output channels of pointwise and
    separable (default: the input's), an activation's name (separable: of both stages), and ``nobias``.

    Or a call is a model's name, ``efficientnet-lite0``, by itself or with the shape of its input: its batch norms are
    folded and its weights frozen, unless ``backward`` asks for training.

    Each is made once on zeros, with as many threads as `set_num_threads` says.

    Args:
        calls: what to compile.
        layout: the layout of the calls.
        dtype: their dtype, by name.
        backward: compile their backward too.

    Returns:
        For each call how many kernels were compiled for it now, and how long it took.

    Raises:
        OptionError: a call is not of that form; its parts raise what the operator raises.
        BackendUnavailableError: the numba backend cannot be used here.

    >>> from npdwconv import warmup
    >>> warmup("no-such-model")
    Traceback (most recent call last):
    npdwconv.errors.OptionError: call is 'no-such-model'; needed a model (efficientnet-lite0) or kind:shape:…
    """
    one_of("layout", layout, LAYOUTS)
    kind = _dtype(one_of("dtype", dtype, ACCUMULATORS))
    runs = [(call, _planned(call, layout, kind, backward)) for call in calls]
    require_usable("numba")
    return [_made(call, run) for call, run in runs]


@contextmanager
def reporting(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell in a line what is compiled once that has taken longer than a second; at the end an empty one."""
    finished: list[float] = []

    def watch(news: Compiling) -> None:
        if news.seconds is not None:
            finished.append(news.seconds)
        elif sum(finished) > PATIENCE:
            tell(f"compiling kernels for this processor, once: {len(finished)} so far, now {news.kernel}")

    with watching(watch):
        try:
            yield
        finally:
            if sum(finished) > PATIENCE:
                tell("")


def _made(call: str, run: Callable[[], None]) -> Warmed:
    compiled: list[str] = []

    def watch(news: Compiling) -> None:
        if news.seconds is not None:
            compiled.append(news.kernel)

    began = time.perf_counter()
    with watching(watch), use_backend("numba"):
        run()
    return Warmed(call, len(compiled), time.perf_counter() - began)


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def _planned(call: str, layout: str, dtype: np.dtype[Any], backward: bool) -> Callable[[], None]:
    name, *parts = call.split(":")
    if name in MODELS:
        return _model(call, name, parts, layout, dtype, backward)
    if name not in OPERATORS or not parts:
        raise OptionError(f"call is {call!r}; needed a model ({', '.join(MODELS)}) or kind:shape:…")
    options = _Options(call, name, parts)
    return lambda: _operator(options, layout, dtype, backward)


def _model(
    call: str, name: str, parts: list[str], layout: str, dtype: np.dtype[Any], backward: bool
) -> Callable[[], None]:
    module, attribute, usual = MODELS[name]
    shape = _extents(call, parts[0]) if parts else usual

    def run() -> None:
        model = getattr(import_module(module), attribute)(layout=layout, dtype=dtype)
        x = np.zeros(shape_of(layout, shape[0], shape[1], shape[2:]), dtype)
        if not backward:
            model.fold().freeze()(x)
            return
        model.train()
        model.backward(np.zeros_like(model(x)))

    return run


class _Options:
    """The parts of one call."""

    def __init__(self, call: str, kind: str, parts: list[str]) -> None:
        self.call, self.kind = call, kind
        self.batch, self.channels, *size = _extents(call, parts[0], least=3)
        self.size = tuple(size)
        self.kernel = self._axes("4" if kind == "causal" else "3")
        self.outputs, self.multiplier, self.bias = self.channels, 1, True
        self.options: dict[str, Any] = {}
        for part in parts[1:]:
            self._read(part)
        if kind not in ("pointwise", "causal", "tokens"):
            self.options.setdefault("padding", tuple(extent // 2 for extent in self.kernel))

    def _read(self, part: str) -> None:
        letter, rest = part[:1], part[1:]
        if part == "nobias":
            self.bias = False
        elif part in ACTIVATIONS:
            names = ("depthwise_activation", "activation") if self.kind == "separable" else ("activation",)
            self.options |= dict.fromkeys(names, part)
        elif letter == "p" and rest in PADDING_NAMES:
            self.options["padding"] = rest
        elif letter == "k":
            self.kernel = self._axes(rest)
        elif letter == "o":
            (self.outputs,) = self._axes(rest)[:1]
        elif letter == "m":
            (self.multiplier,) = self._axes(rest)[:1]
        elif letter in ("s", "d", "p"):
            self.options[{"s": "stride", "d": "dilation", "p": "padding"}[letter]] = self._axes(rest)
        else:
            raise OptionError(
                f"call is {self.call!r} with the part {part!r}; needed k3, s2, d2, p1, psame, m2, o64, nobias "
                f"or an activation ({', '.join(ACTIVATIONS)})"
            )

    def _axes(self, text: str) -> tuple[int, ...]:
        found = _extents(self.call, text)
        return found * len(self.size) if len(found) == 1 else found


def _extents(call: str, text: str, least: int = 1) -> tuple[int, ...]:
    """``1x32x112x112`` -> (1, 32, 112, 112)."""
    found = text.split("x")
    if len(found) < least or not all(part.isdecimal() for part in found):
        raise OptionError(f"call is {call!r} with {text!r}; needed numbers joined by x, at least {least}")
    return tuple(map(int, found))


def _operator(o: _Options, layout: str, dtype: np.dtype[Any], backward: bool) -> None:
    module, name = OPERATORS[o.kind]
    name = name.format(len(o.size))
    options = o.options | ({"grid": o.size} if o.kind == "tokens" else {"layout": layout})
    operands = {operand: np.zeros(shape, dtype) for operand, shape in _shapes(o, layout).items()}
    out = getattr(module, name)(**operands, **options)
    if backward:
        grad_out = np.zeros_like(out[0] if isinstance(out, tuple) else out)
        getattr(module, f"{name}_backward")(grad_out, **operands, **options)


def _shapes(o: _Options, layout: str) -> dict[str, tuple[int, ...]]:
    """The operands' shapes by name."""
    middle = o.channels * o.multiplier
    outputs = o.outputs if o.kind in ("pointwise", "separable") else middle
    taps, matrix = (middle, 1, *o.kernel), (o.outputs, middle)
    grid = (o.batch, prod(o.size), o.channels)
    shapes = {"x": grid if o.kind == "tokens" else shape_of(layout, o.batch, o.channels, o.size)}
    if o.kind == "separable":
        shapes |= {"depthwise_weight": taps, "pointwise_weight": matrix}
    else:
        shapes |= {"weight": matrix if o.kind == "pointwise" else taps}
    biases = {"bias": (outputs,)} | ({"depthwise_bias": (middle,)} if o.kind == "separable" else {})
    return shapes | (biases if o.bias else {})
