"""Layer room: what every layer shares, its arrays by name, their state, and freezing. Nothing numeric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npdwconv.errors import CheckpointError, ShapeError
from npdwconv.kernels.steps import Step
from npdwconv.layouts import Array

if TYPE_CHECKING:
    from typing_extensions import Self


class Arrays(dict[str, Array]):
    """Arrays by name. Assigning to a name writes into the array under it, so whoever holds that array sees the change.

    >>> params = Arrays(bias=np.zeros(2))
    >>> held = params["bias"]
    >>> params["bias"] = [1.0, 2.0]
    >>> held
    array([1., 2.])
    """

    def __setitem__(self, name: str, value: Any) -> None:
        array = self[name]
        if np.shape(value) != array.shape:
            raise ShapeError(f"{name}: found shape {np.shape(value)}, needed {array.shape}")
        array[...] = value

    def __reduce__(self) -> tuple[type[Arrays], tuple[dict[str, Array]]]:
        return Arrays, (dict(self),)


class Keys(NamedTuple):
    """The names that `load_state_dict(strict=False)` passed over."""

    missing: list[str]
    unexpected: list[str]


class Module:
    """Parameters, buffers and gradients by name. A leaf owns arrays; a container collects those of its leaves."""

    _optional: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._params = Arrays()
        self._buffers: dict[str, Array] = {}
        self._grads: dict[str, Array] = {}
        self._saved: tuple[Any, ...] | None = None
        self._frozen = False
        self._training = False

    @property
    def params(self) -> Arrays:
        """The parameters by name: the arrays that the next call reads."""
        return self._params

    @property
    def buffers(self) -> dict[str, Array]:
        """The arrays that are state but not trained: running statistics."""
        return self._buffers

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients by parameter name that the last `backward` left; replaced by the next one, not added to."""
        return self._grads

    @property
    def frozen(self) -> bool:
        """Whether `freeze` is in force."""
        return self._frozen

    @property
    def training(self) -> bool:
        """Whether batch norm uses batch statistics; False to begin with."""
        return self._training

    def walk(self) -> Iterator[tuple[str, Module]]:
        """Every leaf with its dotted name, in the order of the forward pass."""
        yield "", self

    def train(self, mode: bool = True) -> Self:
        """Switch to batch statistics in batch norm (``mode=False``: running statistics). Returns the layer itself."""
        if mode:
            self._require_thawed("train")
        for _, leaf in self.walk():
            leaf._training = mode
        return self

    def eval(self) -> Self:
        """Switch to running statistics in batch norm, the state that a layer begins in. Returns the layer itself."""
        return self.train(False)

    def freeze(self) -> Self:
        """Pack the weights once, for inference. Returns the layer itself.

        Until `unfreeze`, ``params`` are read-only, nothing is kept for `backward`, and that raises. Ends training mode.
        """
        self.eval()
        for _, leaf in self.walk():
            leaf._forget()
            leaf._set_writeable(False)
            leaf._pack()
            leaf._frozen = True
        return self

    def unfreeze(self) -> Self:
        """Undo `freeze`. Returns the layer itself."""
        for _, leaf in self.walk():
            leaf._set_writeable(True)
            leaf._unpack()
            leaf._frozen = False
        return self

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter and buffer, under PyTorch's names and in its shapes."""
        return {
            join(prefix, name): array.copy() for prefix, leaf in self.walk() for name, array in leaf._state().items()
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Keys:
        """Copy ``state`` into the parameters and buffers, converted to their dtypes.

        Args:
            state: arrays by name, such as another layer's `state_dict` or what a checkpoint holds.
            strict: whether names that are missing or unexpected are errors; a wrong shape always is one.

        Returns:
            The names missing and unexpected: both empty where ``strict``.

        Raises:
            CheckpointError: names all that does not fit; nothing has been modified then.
            RuntimeError: the layer is frozen.
        """
        self._require_thawed("load_state_dict")
        slots = {join(prefix, name): (leaf, name) for prefix, leaf in self.walk() for name in leaf._state()}
        absent = [key for key in slots if key not in state]
        keys = Keys(
            [key for key in absent if slots[key][1] not in slots[key][0]._optional],
            [k for k in state if k not in slots],
        )
        found = {key: np.asarray(state[key]) for key in slots if key in state}
        faults = [fault for key, value in found.items() if (fault := _fault(key, value, *slots[key]))]
        if strict:
            faults = [*_listed("missing", keys.missing), *_listed("unexpected", keys.unexpected), *faults]
        if faults:
            raise CheckpointError(f"{type(self).__name__}.load_state_dict: " + "; ".join(faults))
        for key, value in found.items():
            leaf, name = slots[key]
            array = leaf._state()[name]
            array[...] = value.reshape(array.shape)
        self._forget_all()
        return keys

    def _state(self) -> dict[str, Array]:
        return {**self._params, **self._buffers}

    def _accepts(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a stored array of ``shape`` can be loaded under ``name``."""
        return shape == self._state()[name].shape

    def _set_writeable(self, flag: bool) -> None:
        for array in self._state().values():
            array.flags.writeable = flag

    def _pack(self) -> None:
        """Prepare what a frozen forward reads."""

    def _unpack(self) -> None:
        """Drop what `_pack` prepared."""

    def _keep(self, *values: Any) -> None:
        self._saved = None if self._frozen else values

    def _recall(self) -> tuple[Any, ...]:
        if self._frozen:
            raise RuntimeError(
                f"{self!r}.backward: frozen layers keep nothing for it; call unfreeze(), then forward again"
            )
        if self._saved is None:
            raise RuntimeError(
                f"{self!r}.backward: there was no forward call to go back through; call forward(x) first"
            )
        return self._saved

    def _fill(self, grads: Mapping[str, Array | None]) -> None:
        """Leave gradients in ``grads``, each in its parameter's shape."""
        for name, grad in grads.items():
            if grad is not None:
                self._grads[name] = grad.reshape(self._params[name].shape)

    def _forget(self) -> None:
        self._saved = None
        self._grads.clear()

    def _forget_all(self) -> None:
        for _, leaf in self.walk():
            leaf._forget()

    def _require_thawed(self, call: str) -> None:
        if any(leaf._frozen for _, leaf in self.walk()):
            raise RuntimeError(f"{type(self).__name__}.{call}: frozen, its arrays are read-only; call unfreeze() first")


class Layer(Module, ABC):
    """A map from one array to one array that can be run backwards."""

    @abstractmethod
    def forward(self, x: Any) -> Array:
        """The layer's value at ``x``; keeps what `backward` needs, by reference, unless frozen."""

    @abstractmethod
    def backward(self, grad_out: Any) -> Array:
        """The gradient in the last ``x``, from the gradient in the last output; fills ``grads``."""

    def __call__(self, x: Any) -> Array:
        return self.forward(x)

    def absorb(self, following: Layer) -> bool:
        """Take over the work of the layer that follows, where one pass can do both; tells whether it did."""
        return False

    def fold(self) -> Self:
        """Fold each batch norm into the convolution before it, in place; returns the layer itself."""
        return self

    def steps(self) -> list[Step] | None:
        """What the layer does as steps of a network, for a backend that runs one whole; None where it cannot be."""
        return None


def join(prefix: str, name: str) -> str:
    """Two parts of a dotted name, either of which may be empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _fault(key: str, value: Array, leaf: Module, name: str) -> str | None:
    target = leaf._state()[name]
    if not leaf._accepts(name, value.shape):
        return f"{key} has shape {value.shape}, needed {target.shape}"
    if not np.can_cast(value.dtype, target.dtype, "same_kind"):
        return f"{key} has dtype {value.dtype}, needed one that converts to {target.dtype}"
    return None


def _listed(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {', '.join(names)}"] if names else []
