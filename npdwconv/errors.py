"""The errors that a caller can meet: each names what was found, what was needed, and the way out."""

from __future__ import annotations

__all__ = ["BackendUnavailableError", "CheckpointError", "DTypeError", "OptionError", "ShapeError"]


class ShapeError(ValueError):
    """An array has the wrong rank or extents, or a result would have impossible ones."""


class DTypeError(TypeError):
    """An operand is no array, or its dtype is not supported or differs from the other operands'."""


class OptionError(ValueError):
    """An option has a value that does not exist, or one that does not fit the call."""


class BackendUnavailableError(RuntimeError):
    """A backend was named that cannot run this call here; the message says why."""


class CheckpointError(ValueError):
    """A weights file is damaged, of an unknown kind, or asks for more than tensors and plain containers."""
