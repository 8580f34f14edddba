"""Layer room: layers made of layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from npdwconv.arguments import as_array
from npdwconv.errors import OptionError, ShapeError
from npdwconv.kernels.steps import Step
from npdwconv.layers.base import Arrays, Layer, Module, join
from npdwconv.layers.frozen import Whole
from npdwconv.layers.normalization import BatchNorm
from npdwconv.layouts import Array

if TYPE_CHECKING:
    from typing_extensions import Self

OnLayer = Callable[[str, Layer, Any, Array, float], object]
"""Called after each leaf with its dotted name, the leaf, what it was given, what it gave, and the seconds it took."""


class Container(Layer):
    """A layer made of others, whose arrays it collects under dotted names.

    Attributes:
        children: the layers by name, in the order of the forward pass.
    """

    def __init__(self, children: Mapping[str, Layer]) -> None:
        super().__init__()
        self.children = dict(children)
        for name, layer in self.children.items():
            if not isinstance(layer, Layer):
                raise OptionError(f"{type(self).__name__}: {name!r} is a {type(layer).__name__}; needed a layer")
        leaves = [id(leaf) for _, leaf in self.walk()]
        if len(set(leaves)) < len(leaves):
            raise OptionError(
                f"{type(self).__name__}: a layer stands in two places; needed one of its own for each place"
            )

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}: {layer!r}" if name else repr(layer) for name, layer in self.children.items())
        return f"{type(self).__name__}({inner})"

    def walk(self) -> Iterator[tuple[str, Module]]:
        for name, layer in self.children.items():
            for inner, leaf in layer.walk():
                yield join(name, inner), leaf

    @property
    def params(self) -> Arrays:
        return Arrays(self._collected("params"))

    @property
    def buffers(self) -> dict[str, Array]:
        return self._collected("buffers")

    @property
    def grads(self) -> dict[str, Array]:
        return self._collected("grads")

    @property
    def frozen(self) -> bool:
        return any(leaf.frozen for _, leaf in self.walk())

    @property
    def training(self) -> bool:
        return any(leaf.training for _, leaf in self.walk())

    def fold(self) -> Self:
        """Fold each batch norm into the convolution before it, and the activation after that into its operator.

        In place, and the layer itself is returned. What has been folded away is gone from ``params`` and `state_dict`,
        the other names stay, and a convolution that had no ``bias`` has one: ``weight · γ/√(var + eps)`` and
        ``(bias − mean) · γ/√(var + eps) + β``, as `fold_batchnorm` computes them.

        Raises:
            RuntimeError: the layer is frozen, or in training mode, where the statistics are each batch's own.
        """
        self._require_thawed("fold")
        if any(leaf.training for _, leaf in self.walk() if isinstance(leaf, BatchNorm)):
            raise RuntimeError(
                f"{type(self).__name__}.fold: in training mode batch norm is no fixed map; call eval() first"
            )
        for layer in self.children.values():
            layer.fold()
        return self

    def _collected(self, kind: str) -> dict[str, Array]:
        parts = ((prefix, getattr(leaf, kind)) for prefix, leaf in self.walk())
        return {join(prefix, name): array for prefix, arrays in parts for name, array in arrays.items()}

    def _forward(self, name: str, x: Any, on_layer: OnLayer | None) -> Array:
        layer = self.children[name]
        if isinstance(layer, Container):
            return layer.forward(x, on_layer=_below(name, on_layer))
        return _told(name, layer, layer.forward, x, on_layer)

    def _backward(self, name: str, grad_out: Any, on_layer: OnLayer | None) -> Array:
        layer = self.children[name]
        if isinstance(layer, Container):
            return layer.backward(grad_out, on_layer=_below(name, on_layer))
        return _told(name, layer, layer.backward, grad_out, on_layer)

    @abstractmethod
    def forward(self, x: Any, *, on_layer: OnLayer | None = None) -> Array:
        """The value at ``x``; ``on_layer`` is called after each leaf."""

    @abstractmethod
    def backward(self, grad_out: Any, *, on_layer: OnLayer | None = None) -> Array:
        """The gradient in the last ``x``; ``on_layer`` is called after each leaf, with its gradients out and in."""


class Sequential(Container):
    """Layers one after the other.

    Args:
        layers: the layers, to be named "0", "1", … as PyTorch names them; or one mapping of names to layers.

    >>> from npdwconv.layers import Activation, BatchNorm, DepthwiseConv2d, PointwiseConv
    >>> block = Sequential(DepthwiseConv2d(4, 3), BatchNorm(4), Activation("relu6"), PointwiseConv(4, 6))
    >>> x = np.ones((1, 4, 5, 5), np.float32)
    >>> before = block(x)
    >>> after = block.fold()(x)
    >>> list(block.params), bool(np.allclose(before, after, atol=1e-6))
    (['0.weight', '0.bias', '3.weight', '3.bias'], True)
    """

    def __init__(self, *layers: Layer | Mapping[str, Layer]) -> None:
        named: dict[str, Any] = {str(index): layer for index, layer in enumerate(layers)}
        super().__init__(layers[0] if len(layers) == 1 and isinstance(layers[0], Mapping) else named)
        self._network: Whole | None = None

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.children.values())

    def __getitem__(self, key: int | str) -> Layer:
        return self.children[key] if isinstance(key, str) else list(self.children.values())[key]

    def freeze(self) -> Self:
        super().freeze()
        self._network = Whole(self.steps())
        return self

    def unfreeze(self) -> Self:
        self._network = None
        return super().unfreeze()

    def steps(self) -> list[Step] | None:
        joined: list[Step] = []
        for layer in self.children.values():
            inner = layer.steps()
            if inner is None:
                return None
            before = len(joined)
            joined += [step if step.adds is None else step._replace(adds=step.adds + before) for step in inner]
        return joined

    def forward(self, x: Any, *, on_layer: OnLayer | None = None) -> Array:
        if self._network is not None and on_layer is None and self._network.takes(x):
            return self._network.forward(x)
        for name in self.children:
            x = self._forward(name, x, on_layer)
        return as_array("x", x)

    def backward(self, grad_out: Any, *, on_layer: OnLayer | None = None) -> Array:
        for name in reversed(self.children):
            grad_out = self._backward(name, grad_out, on_layer)
        return as_array("grad_out", grad_out)

    def fold(self) -> Self:
        super().fold()
        kept: dict[str, Layer] = {}
        for name, layer in self.children.items():
            previous = next(reversed(kept.values()), None)
            if previous is None or not previous.absorb(layer):
                kept[name] = layer
        self.children = kept
        return self


class Residual(Container):
    """``x + inner(x)``, under the names of ``inner``: the addition has none.

    >>> from npdwconv.layers import PointwiseConv
    >>> list(Residual(PointwiseConv(4, 4)).params)
    ['weight', 'bias']
    """

    def __init__(self, inner: Layer) -> None:
        super().__init__({"": inner})

    @property
    def inner(self) -> Layer:
        """The layer whose result is added to its input."""
        return self.children[""]

    def forward(self, x: Any, *, on_layer: OnLayer | None = None) -> Array:
        whole = as_array("x", x)
        y = self._forward("", whole, on_layer)
        if y.shape != whole.shape:
            raise ShapeError(
                f"{type(self).__name__}: x has shape {whole.shape}, inner(x) {y.shape}; needed the same for both"
            )
        with np.errstate(all="ignore"):
            return np.add(whole, y)

    def steps(self) -> list[Step] | None:
        inner = self.inner.steps()
        if not inner or inner[-1].kind != "pointwise" or inner[-1].adds is not None:
            return None
        return [*inner[:-1], inner[-1]._replace(adds=-1)]

    def backward(self, grad_out: Any, *, on_layer: OnLayer | None = None) -> Array:
        grad = as_array("grad_out", grad_out)
        inner = self._backward("", grad, on_layer)
        with np.errstate(all="ignore"):
            return np.add(grad, inner)


def _below(name: str, on_layer: OnLayer | None) -> OnLayer | None:
    if on_layer is None or not name:
        return on_layer
    return lambda inner, *rest: on_layer(join(name, inner), *rest)


def _told(name: str, layer: Layer, run: Callable[[Any], Array], given: Any, on_layer: OnLayer | None) -> Array:
    start = perf_counter()
    result = run(given)
    if on_layer is not None:
        on_layer(name, layer, given, result, perf_counter() - start)
    return result
