"""``npdwconv bench --backend cuda``: published shapes on a GPU, beside PyTorch, and the copy that bounds them.

One process, for the device runs one call at a time. A case whose result lies outside its bound against float64 has no
time. Calls are queued behind a pause, so that the host's part of a call is not measured; operands rotate, so that they
come from memory and not from the cache; device events give the time (CUDA driver API, ``cuEventElapsedTime``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from math import exp, log, prod
from typing import Any, NamedTuple

import numpy as np

import npdwconv
from npdwconv.bench.cases import DEPTHWISE, SEPARABLE, Case
from npdwconv.device import adopted
from npdwconv.errors import BackendUnavailableError, OptionError

Call = Callable[[], Any]

BATCH = 32
ROTATED = 200_000_000  # bytes of one operand's copies: four times the cache of an H100
PAUSE = 8_000_000  # cycles by which the device waits, while calls are queued behind
CALLS = 10
QUICK = ((128, 56, 3, 1), (64, 112, 3, 2), (240, 28, 5, 1), (96, 56, 7, 1))
NARROW = ((64, 128, 56, 1), (128, 64, 56, 1), (96, 96, 28, 1))  # pairs with few results, which one kernel computes
OPERATIONS = ("forward", "input gradient", "weight gradient")


class Kind(NamedTuple):
    """A layout and a dtype, and what runs it in the framework."""

    layout: str
    dtype: str
    peer: str


KINDS = (
    Kind("channels_first", "float32", "torch, native kernels"),
    Kind("channels_last", "float16", "torch, cuDNN channels_last"),
)


class Row(NamedTuple):
    """One operation at one shape: microseconds of ours and of the peer's, and our share of what a copy moves."""

    case: str
    operation: str
    layout: str
    dtype: str
    peer: str
    ours: float | None
    theirs: float
    share: float | None
    megabytes: float
    wrong: str = ""

    @property
    def ratio(self) -> float | None:
        """The peer's time to ours."""
        return None if self.ours is None else self.theirs / self.ours


class DeviceReport(NamedTuple):
    """What was measured, on which card."""

    card: str
    versions: str
    copied: float  # terabytes a second, read and written
    copier: str
    host: dict[str, float]  # microseconds a call takes of the host
    rows: tuple[Row, ...]
    compiled: float  # seconds of first calls

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        rows = [{**row._asdict(), "ratio": row.ratio} for row in self.rows]
        return {**self._asdict(), "rows": rows}

    @property
    def wrong(self) -> bool:
        """Whether any result lay outside its bound."""
        return any(row.wrong for row in self.rows)


def shapes(match: str = "", quick: bool = False) -> list[Case]:
    """The published depthwise shapes at the batch that the GPU literature uses."""
    published = (shape for group in DEPTHWISE.values() for shape in group if shape[2] <= 7)
    chosen = QUICK if quick else tuple(dict.fromkeys(published))
    cases = [Case("depthwise_fwd", BATCH, c, (h, h), k, s) for c, h, k, s in chosen]
    found = [case for case in cases if match in case.name]
    if not found:
        raise OptionError(f"--match {match!r} names no case; they are named like {cases[0].name}")
    return found


def run(cases: list[Case], rounds: int, pairs: bool, tell: Callable[[str], None]) -> DeviceReport:
    """Measure ``cases`` in every kind, and with ``pairs`` the products that follow them in a network, alone and so."""
    if find_spec("torch") is None:
        raise BackendUnavailableError("bench: --backend cuda measures beside PyTorch, which is not installed")
    torch: Any = import_module("torch")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    bench = _Bench(torch, rounds)
    copier, copied = bench.copy()
    rows: list[Row] = []
    for kind in KINDS:
        for case in cases:
            tell(f"{kind.layout} {kind.dtype} {case.name}")
            rows += bench.depthwise(case, kind, copied)
        if pairs:
            for channels, outputs, extent, _ in SEPARABLE:
                tell(f"{kind.layout} {kind.dtype} pointwise {channels} to {outputs}")
                rows.append(bench.pointwise(channels, outputs, extent, kind, copied))
            for channels, outputs, extent, stride in (*SEPARABLE, *NARROW):
                case = Case("separable_fwd", BATCH, channels, (extent, extent), 3, stride, outputs=outputs)
                tell(f"{kind.layout} {kind.dtype} separable {case.name}")
                rows.append(bench.separable(case, kind, copied))
    card = torch.cuda.get_device_properties(0).name
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba-cuda", "numba"))
    return DeviceReport(card, versions, copied, copier, bench.host(), tuple(rows), bench.compiled)


class _Bench:
    def __init__(self, torch: Any, rounds: int) -> None:
        self.torch, self.rounds, self.compiled = torch, rounds, 0.0

    def timed(self, calls: list[Call]) -> float:
        """The median of the rounds, in microseconds a call; the calls' operands take turns."""
        cuda = self.torch.cuda
        for call in calls[:2]:
            call()
        found = []
        for _ in range(self.rounds):
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            cuda.synchronize()
            cuda._sleep(PAUSE)
            begin.record()
            for number in range(CALLS):
                calls[number % len(calls)]()
            end.record()
            cuda.synchronize()
            found.append(begin.elapsed_time(end) / CALLS * 1e3)
        return float(np.median(found))

    def random(self, shape: tuple[int, ...], dtype: Any, last: bool) -> Any:
        """Normal numbers on the device, in either memory format."""
        torch = self.torch
        form = torch.channels_last if last else torch.contiguous_format
        return torch.randn(shape, device="cuda").to(dtype).to(memory_format=form)

    def copy(self) -> tuple[str, float]:
        """Who copies fastest, and how many terabytes a second it reads and writes."""
        torch, size = self.torch, 1 << 28
        source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        ways: dict[str, Call] = {"torch": partial(target.copy_, source)}
        if find_spec("cupy") is not None:
            cupy: Any = import_module("cupy")
            ours, theirs = cupy.asarray(source), cupy.asarray(target)
            ways["CuPy"] = partial(cupy.copyto, theirs, ours)
        times = {name: self.timed([way]) for name, way in ways.items()}
        best = min(times, key=lambda name: times[name])
        return best, 2 * size / times[best] * 1e-6

    def depthwise(self, case: Case, kind: Kind, copied: float) -> Iterator[Row]:
        """Forward and both gradients of one shape."""
        torch, last = self.torch, kind.layout == "channels_last"
        dtype, groups, pad = getattr(torch, kind.dtype), case.channels, case.kernel // 2
        count = min(12, max(2, ROTATED // (prod((BATCH, groups, *case.size)) * dtype.itemsize) + 1))
        xs = [self.random((BATCH, groups, *case.size), dtype, last) for _ in range(count)]
        w = self.random((groups, 1, case.kernel, case.kernel), dtype, last)
        conv = partial(torch.nn.functional.conv2d, stride=case.stride, padding=pad, groups=groups)
        gs = [torch.randn_like(conv(x, w)) for x in xs]
        steps = ([case.stride] * 2, [pad] * 2, [1, 1], False, [0, 0], groups)

        def backward(g: Any, x: Any, weight: Any, *needs: bool) -> Any:
            return torch.ops.aten.convolution_backward(g, x, weight, None, *steps, [*needs, False])

        options: dict[str, Any] = {"stride": case.stride, "padding": pad, "layout": kind.layout}
        dx, dg, dw = [_ours(x, last) for x in xs], [_ours(g, last) for g in gs], adopted("weight", w.contiguous())
        pairs, tensors = list(zip(dg, dx, strict=True)), list(zip(gs, xs, strict=True))
        calls: tuple[list[Call], ...] = (
            [partial(npdwconv.depthwise_conv2d, x, dw, **options) for x in dx],
            [partial(npdwconv.depthwise_conv2d_input_grad, g, dw, x.shape, **options) for g, x in pairs],
            [partial(npdwconv.depthwise_conv2d_weight_grad, g, x, dw.shape, **options) for g, x in pairs],
        )
        peers: tuple[list[Call], ...] = (
            [partial(conv, x, w) for x in xs],
            [partial(backward, g, x, w, True, False) for g, x in tensors],
            [partial(backward, g, x, w, False, True) for g, x in tensors],
        )
        x, g, weight = xs[0].double(), gs[0].double(), w.double()
        exact = [conv(x, weight), *backward(g, x, weight, True, True)[:2]]
        sizes = [conv(x.abs(), weight.abs()), *backward(g.abs(), x.abs(), weight.abs(), True, True)[:2]]
        terms = (case.kernel**2, case.kernel**2, gs[0].numel() // groups)
        moved = (xs[0].numel() + gs[0].numel()) * dtype.itemsize
        for place, (name, ours) in enumerate(zip(OPERATIONS, calls, strict=True)):
            began = time.perf_counter()
            got = torch.from_dlpack(ours[0]())
            torch.cuda.synchronize()
            self.compiled += time.perf_counter() - began
            image = last and place < 2
            wrong = _outside(torch, got.permute(0, 3, 1, 2) if image else got, exact[place], sizes[place], terms[place])
            mine = None if wrong else self.timed(ours)
            share = None if mine is None else moved / mine * 1e-6 / copied
            theirs = self.timed(peers[place])
            yield Row(case.name, name, kind.layout, kind.dtype, kind.peer, mine, theirs, share, moved / 1e6, wrong)

    def pointwise(self, channels: int, outputs: int, extent: int, kind: Kind, copied: float) -> Row:
        """The product that follows a depthwise convolution in a network."""
        torch, last = self.torch, kind.layout == "channels_last"
        dtype = getattr(torch, kind.dtype)
        xs = [self.random((BATCH, channels, extent, extent), dtype, last) for _ in range(3)]
        w = self.random((outputs, channels, 1, 1), dtype, last)
        dw = adopted("weight", w.contiguous())
        ours: list[Call] = [partial(npdwconv.pointwise_conv, _ours(x, last), dw, layout=kind.layout) for x in xs]
        got, conv = torch.from_dlpack(ours[0]()), torch.nn.functional.conv2d
        x, wide = xs[0].double(), w.double()
        image = got.permute(0, 3, 1, 2) if last else got
        wrong = _outside(torch, image, conv(x, wide), conv(x.abs(), wide.abs()), channels)
        mine = None if wrong else self.timed(ours)
        theirs = self.timed([partial(conv, x, w) for x in xs])
        moved = (xs[0].numel() + got.numel()) * dtype.itemsize
        share = None if mine is None else moved / mine * 1e-6 / copied
        name = Case("", BATCH, channels, (extent, extent), outputs=outputs).name
        return Row(name, "pointwise", kind.layout, kind.dtype, "torch", mine, theirs, share, moved / 1e6, wrong)

    def separable(self, case: Case, kind: Kind, copied: float) -> Row:
        """Both stages in one call, beside two calls of ours with the value between them in memory."""
        torch, last, dtype = self.torch, kind.layout == "channels_last", getattr(self.torch, kind.dtype)
        shape, taps = (BATCH, case.channels, *case.size), (case.channels, 1, case.kernel, case.kernel)
        xs = [self.random(shape, dtype, last) for _ in range(3)]
        w, v = self.random(taps, dtype, False), self.random((case.outputs, case.channels, 1, 1), dtype, False)
        dw, dv = adopted("weight", w), adopted("weight", v.reshape(v.shape[:2]))
        options: dict[str, Any] = {"stride": case.stride, "padding": case.kernel // 2, "layout": kind.layout}

        def both(x: Any) -> Any:
            middle = npdwconv.depthwise_conv2d(x, dw, **options)
            return npdwconv.pointwise_conv(middle, dv, layout=kind.layout)

        ours: list[Call] = [partial(npdwconv.separable_conv2d, _ours(x, last), dw, dv, **options) for x in xs]
        two: list[Call] = [partial(both, _ours(x, last)) for x in xs]
        got, conv = torch.from_dlpack(ours[0]()), torch.nn.functional.conv2d
        first = partial(conv, stride=case.stride, padding=case.kernel // 2, groups=case.channels)
        x, wide, mixed = xs[0].double(), w.double(), v.double()
        exact, size = conv(first(x, wide), mixed), conv(first(x.abs(), wide.abs()), mixed.abs())
        image = got.permute(0, 3, 1, 2) if last else got
        wrong = _outside(torch, image, exact, size, case.kernel**2 + case.channels)
        mine = None if wrong else self.timed(ours)
        moved = (xs[0].numel() + got.numel()) * dtype.itemsize
        share = None if mine is None else moved / mine * 1e-6 / copied
        peer, theirs = "two calls of ours", self.timed(two)
        return Row(case.name, "separable", kind.layout, kind.dtype, peer, mine, theirs, share, moved / 1e6, wrong)

    def host(self) -> dict[str, float]:
        """Microseconds of the host that a small call takes: with our arrays, with PyTorch's, and PyTorch's own."""
        torch = self.torch
        x, w = torch.randn(1, 32, 14, 14, device="cuda"), torch.randn(32, 1, 3, 3, device="cuda")
        dx, dw = adopted("x", x), adopted("weight", w)
        calls: dict[str, Call] = {
            "device arrays of ours": partial(npdwconv.depthwise_conv2d, dx, dw, padding=1),
            "tensors of PyTorch's": partial(npdwconv.depthwise_conv2d, x, w, padding=1),
            "PyTorch's own call": partial(torch.nn.functional.conv2d, x, w, padding=1, groups=32),
        }
        found = {}
        for name, call in calls.items():
            times = []
            for _ in range(5):
                torch.cuda.synchronize()
                began = time.perf_counter()
                for _ in range(100):
                    call()
                times.append((time.perf_counter() - began) * 1e4)
            found[name] = float(np.median(times))
        return found


def _ours(tensor: Any, last: bool) -> Any:
    return adopted("tensor", tensor.permute(0, 2, 3, 1) if last else tensor)


def _outside(torch: Any, got: Any, exact: Any, size: Any, terms: int) -> str:
    """What is wrong with a result: an element beyond γₙ·Σ|w·x| and the rounding of what is stored; N. Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, section 3.1."""
    unit, stored = 2.0**-24, torch.finfo(got.dtype).eps / 2
    bound = (terms + 2) * unit / (1 - (terms + 2) * unit) * size + stored * exact.abs() + torch.finfo(got.dtype).tiny
    error = (got.double() - exact).abs()
    worst = float((error / bound).max())
    return "" if worst <= 1 else f"an error of {worst:.3g} times its bound"


def mean(ratios: list[float]) -> float:
    """The geometric mean."""
    return exp(sum(map(log, ratios)) / len(ratios))
