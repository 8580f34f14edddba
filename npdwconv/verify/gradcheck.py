"""Gradients against their forward, exactly: on small integers no sum is rounded, so identities hold to the last bit.

A convolution is affine in each of its operands while the others are held. So for every d and g

    ⟨f(p + d) − f(p), g⟩ = ⟨d, grad_p(g)⟩,

which is the definition of the gradient in p, with nothing neglected: no step size, no tolerance. Whether f is affine in
p is asked first: f(p + 2d) − f(p + d) = f(p + d) − f(p).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import npdwconv
from npdwconv.arguments import as_array
from npdwconv.cases import Case
from npdwconv.errors import OptionError
from npdwconv.layouts import Array
from npdwconv.options import one_of
from npdwconv.verify.bounds import PRECISIONS
from npdwconv.verify.check import bind, check
from npdwconv.verify.operators import NEEDED, OPERATORS
from npdwconv.verify.report import Report

FORWARDS = tuple(op for op in OPERATORS if f"{op}_backward" in OPERATORS)
PROBES = 3  # of random g and d for each operand, besides those of one element
THINNEST = 2.0**-30  # share of elements that are not zero, below which integers are given up
_ACTIVATIONS = ("activation", "depthwise_activation")

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Identity:
    """One identity: in which operand, of which kind, and its two sides.

    ``kind`` is ``"affine"`` (``left`` and ``right`` are the two differences of the forward, dotted with g) or
    ``"adjoint"`` (⟨f(p + d) − f(p), g⟩ and ⟨d, grad_p(g)⟩).
    """

    operand: str
    kind: str
    left: float
    right: float

    @property
    def ok(self) -> bool:
        return self.left == self.right


@dataclass(frozen=True)
class GradReport:
    """What `gradcheck` found.

    Attributes:
        ok: whether every identity holds, and the gradients at the arrays that were passed are within their bounds.
        identities: all that were tried.
        report: of an operator by name, `verify.check` of its gradients at the arrays that were passed.
    """

    name: str
    identities: tuple[Identity, ...]
    report: Report | None = None

    @property
    def ok(self) -> bool:
        return all(each.ok for each in self.identities) and (self.report is None or self.report.ok)

    @property
    def failed(self) -> tuple[str, ...]:
        """The operands whose gradients are wrong."""
        return tuple(dict.fromkeys(each.operand for each in self.identities if not each.ok))

    def __str__(self) -> str:
        held = sum(each.ok for each in self.identities)
        lines = [f"{self.name}: {held} of {len(self.identities)} identities hold exactly"]
        for operand in self.failed:
            wrong = next(each for each in self.identities if each.operand == operand and not each.ok)
            if wrong.kind == "affine":
                lines.append(
                    f"  {operand}: the forward is not affine in it ({wrong.left:g} and then {wrong.right:g} for equal "
                    f"steps), as with an activation: check the pair without it, or an operator by name"
                )
            else:
                lines.append(f"  {operand}: ⟨f(p + d) − f(p), g⟩ is {wrong.left:g}, ⟨d, grad⟩ is {wrong.right:g}")
        return "\n".join(lines if self.report is None else [*lines, "", str(self.report)])


def gradcheck(op: str | tuple[Forward, Forward], *arrays: Any, seed: int = 0, **options: Any) -> GradReport:
    """Whether a backward is the gradient of its forward: by identities that hold exactly on small integers.

    Args:
        op: a forward operator's name, whose backward is checked; or a pair ``(forward, backward)`` of your own:
            ``forward(*arrays, **options)`` returns an array or a tuple of them, ``backward(grad_out, *arrays,
            **options)`` the gradients in the arrays' order, None where there is none. Of a tuple, ``grad_out`` is one.
        arrays, options: what the forward is called with. The arrays of the identities have their shapes and dtypes
            and small integers in them.
        seed: of the integers.

    Returns:
        A `GradReport`. By name, activations are left out of the identities, and the gradients with them are held
        against their bounds at ``arrays``.

    Raises:
        OptionError: the operator has no backward, or an array has a dtype that holds no integers to add up.
        ShapeError, DTypeError: as the operator does.

    >>> import numpy as np
    >>> from npdwconv import verify
    >>> x, weight = np.ones((1, 4, 8, 8), np.float32), np.ones((4, 1, 3, 3), np.float32)
    >>> verify.gradcheck("depthwise_conv2d", x, weight, stride=2, padding="same", activation="silu").ok
    True
    >>> def forward(x, scale):
    ...     return x * scale
    >>> def backward(grad_out, x, scale):
    ...     return grad_out * scale, (grad_out * x).sum(keepdims=True) * 2
    >>> verify.gradcheck((forward, backward), np.ones(5), np.ones(1)).failed
    ('operand 1',)
    """
    if isinstance(op, tuple):
        forward, backward = op
        operands = {f"operand {place}": as_array(f"operand {place}", array) for place, array in enumerate(arrays)}
        name = getattr(forward, "__name__", "forward")
        probe = _Probe(
            lambda given: forward(*given.values(), **options),
            lambda grad, given: dict(
                zip(given, _listed(backward(_single(grad), *given.values(), **options)), strict=False)
            ),
        )
        return GradReport(name, tuple(_identities(probe, operands, seed)))
    one_of("op", op, FORWARDS)
    case = bind(op, {}, arrays, options)
    identities = tuple(_identities(_named(case), case.operands, seed))
    return GradReport(op, identities, _at(case, seed))


@dataclass(frozen=True)
class _Probe:
    """A forward of operands by name, and its gradients by name for gradients in its results."""

    forward: Callable[[dict[str, Array]], Any]
    backward: Callable[[list[Array], dict[str, Array]], dict[str, Any]]

    def results(self, operands: dict[str, Array]) -> list[Array]:
        return [np.asarray(each) for each in _listed(self.forward(operands))]


def _named(case: Case) -> _Probe:
    """An operator and its backward, without activations."""
    options = {name: value for name, value in case.options.items() if name not in (*_ACTIVATIONS, "out")}
    forward, backward = getattr(npdwconv, case.op), getattr(npdwconv, f"{case.op}_backward")

    def gradients(grad: list[Array], given: dict[str, Array]) -> dict[str, Any]:
        carried = {"grad_next_state": grad[1]} if len(grad) > 1 else {}
        found: dict[str, Any] = backward(grad[0], **given, **carried, **options)._asdict()
        return found

    return _Probe(lambda given: forward(**given, **options), gradients)


def _at(case: Case, seed: int) -> Report:
    """The gradients at the arrays themselves, activations included, against their bounds."""
    rng = np.random.default_rng(seed)
    options = {name: value for name, value in case.options.items() if name != "out"}
    out = _listed(getattr(npdwconv, case.op)(**case.operands, **options))[0]
    grad = rng.standard_normal(out.shape).astype(out.dtype)
    operands = {"grad_out": grad} | case.operands
    op = f"{case.op}_backward"
    found = getattr(npdwconv, op)(**operands, **options)
    observed = {name: array for name, array in zip(NEEDED[op], found, strict=True) if array is not None}
    return check(Case(op, operands, options, observed))


def _identities(probe: _Probe, operands: dict[str, Array], seed: int) -> Iterator[Identity]:
    rng = np.random.default_rng(seed)
    for number in range(PROBES):
        given, steps, grad = _integers(probe, operands, rng, number)
        found = probe.results(given)
        gradients = probe.backward(grad, given)
        for name, step in steps.items():
            if gradients.get(name) is None:
                continue
            once = probe.results(given | {name: given[name] + step})
            twice = probe.results(given | {name: given[name] + step + step})
            first, second = (_dots(later, earlier, grad) for later, earlier in ((once, found), (twice, once)))
            yield Identity(name, "affine", first, second)
            yield Identity(name, "adjoint", first, _dot(step, np.asarray(gradients[name])))


def _integers(
    probe: _Probe, operands: dict[str, Array], rng: np.random.Generator, number: int
) -> tuple[dict[str, Array], dict[str, Array], list[Array]]:
    """Operands, steps of them and a gradient, all of -1, 0 and 1, so sparse that no sum of theirs is rounded."""
    share = 1.0
    while share > THINNEST:
        given, steps = ({n: _signs(rng, a, share) for n, a in operands.items()} for _ in range(2))
        most = {name: abs(given[name]) + 2 * abs(steps[name]) for name in given}
        ceiling = probe.results(most)
        grad = [_signs(rng, result, share) for result in ceiling]
        bounds = probe.backward([abs(each) for each in grad], most)
        reached = [*ceiling, *(np.asarray(each) for each in bounds.values() if each is not None)]
        if all(_exact(array) for array in reached):
            return given, steps, grad
        share /= 2
    raise OptionError(f"no integers are small enough for {', '.join(str(a.dtype) for a in operands.values())}")


def _exact(array: Array) -> bool:
    """Whether every integer up to the largest of these is a number of their format."""
    if array.dtype.name not in PRECISIONS:
        raise OptionError(f"a result has dtype {array.dtype}; needed one of {', '.join(PRECISIONS)}")
    return float(np.max(np.abs(array.astype(np.float64)), initial=0.0)) <= 2.0 ** PRECISIONS[array.dtype.name].digits


def _signs(rng: np.random.Generator, like: Array, share: float) -> Array:
    drawn = rng.integers(-1, 2, like.shape) * (rng.random(like.shape) < share)
    return np.asarray(drawn.astype(like.dtype))


def _dots(later: list[Array], earlier: list[Array], grad: list[Array]) -> float:
    return sum(_dot(a.astype(np.float64) - b, g) for a, b, g in zip(later, earlier, grad, strict=True))


def _dot(one: Array, other: Array) -> float:
    return float(np.sum(one.astype(np.float64) * other.astype(np.float64)))


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _single(grad: list[Array]) -> Any:
    return grad[0] if len(grad) == 1 else tuple(grad)
