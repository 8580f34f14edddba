"""Case room: one call of an operator and what was observed for it, in memory and in a ``.npz`` file."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from npdwconv.errors import OptionError
from npdwconv.layouts import Array
from npdwconv.precision import is_supported

# operands of the operators, by the names of their parameters
OPERANDS = (
    "grad_out",
    "x",
    "weight",
    "depthwise_weight",
    "pointwise_weight",
    "depthwise_bias",
    "bias",
    "state",
    "grad_next_state",
)
RESULTS = ("out", "next_state")  # of a forward; the gradients of a backward are named like its operands
_GRADIENT = "grad_"  # before a gradient's name in a file, where an operand may have the same
_BFLOAT16 = "bfloat16:"  # before the name of an array in a file, which NumPy would read back as bytes
_TEXTS = ("op", "options", "name")


@dataclass(frozen=True)
class Case:
    """One call of a public operator, and what somebody's implementation of it returned.

    Attributes:
        op: the operator's name, such as ``"depthwise_conv2d"``.
        operands: its array arguments by their names (`OPERANDS`); what is None is left out.
        options: its other arguments by their names.
        observed: ``{"out": array}`` for a forward (and ``"next_state"`` for a causal one), gradients by their operand's
            name for a backward.
        name: what the report calls it, such as a layer's name.

    >>> import numpy as np
    >>> from npdwconv.cases import Case
    >>> x, weight = np.ones((1, 2, 4, 4), np.float32), np.ones((2, 1, 1, 1), np.float32)
    >>> Case("depthwise_conv2d", {"x": x, "weight": weight}, {"stride": 2}, {"out": x[:, :, ::2, ::2]}).op
    'depthwise_conv2d'
    """

    op: str
    operands: dict[str, Array]
    options: dict[str, Any] = field(default_factory=dict)
    observed: dict[str, Array] = field(default_factory=dict)
    name: str = ""


class Skipped(NamedTuple):
    """A layer of a model that is no case, and why."""

    name: str
    kind: str
    reason: str


class Captured(NamedTuple):
    """What a model's run gave: cases of the layers that our operators cover, and the others."""

    cases: list[Case]
    skipped: list[Skipped]


def save(case: Case, path: str | PathLike[str]) -> None:
    """Write a case to a ``.npz`` file, so that a report of a bug can carry it.

    Args:
        case: what to write. In the file are ``op``, ``name`` and ``options`` (JSON), the operands under their names,
            and what was observed as ``out``, ``next_state``, or ``grad_x``, ``grad_weight``, … for a backward.
        path: the file's name, to which nothing is appended.

    Raises:
        OptionError: the file cannot be written, or an option is no plain value.

    >>> import numpy as np, tempfile, pathlib
    >>> from npdwconv.cases import Case, load, save
    >>> x, weight, out = np.ones((1, 2, 4)), np.ones((3, 2)), 2 * np.ones((1, 3, 4))
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "case.npz"
    >>> save(Case("pointwise_conv", {"x": x, "weight": weight}, {"activation": "relu"}, {"out": out}), file)
    >>> load(file).options
    {'activation': 'relu'}
    """
    try:
        options = json.dumps(case.options)
    except TypeError as error:
        raise OptionError(f"options {case.options!r}: {error}; needed plain numbers, texts, lists and tuples") from None
    arrays: dict[str, Any] = {"op": np.array(case.op), "name": np.array(case.name), "options": np.array(options)}
    results = {name if name in RESULTS else f"{_GRADIENT}{name}": array for name, array in case.observed.items()}
    for name, array in {**case.operands, **results}.items():
        narrow = array.dtype.name == "bfloat16"
        arrays[f"{_BFLOAT16}{name}" if narrow else name] = array.view(np.uint16) if narrow else array
    try:
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise OptionError(f"{path}: {error}; needed a file that can be written") from error


def load(path: str | PathLike[str]) -> Case:
    """Read a case that `save` wrote, or that another program wrote under the same names; nothing in it is run.

    Raises:
        OptionError: the file cannot be read, is no case, or has an array under a name that no case has.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path}: {error}; needed a case, an .npz file that numpy.savez wrote") from error
    texts = {name: _text(path, name, arrays.pop(name)) for name in _TEXTS if name in arrays}
    if "op" not in texts:
        raise OptionError(f"{path}: it has {', '.join(sorted(arrays)) or 'nothing'}; needed op, the operator's name")
    named = dict(_floating(path, name, array) for name, array in arrays.items())
    backward = texts["op"].endswith("_backward")
    results = {n if n in RESULTS else n.removeprefix(_GRADIENT): a for n, a in named.items() if _is_result(n, backward)}
    operands = {name: array for name, array in named.items() if name in OPERANDS and not _is_result(name, backward)}
    left = sorted(name for name in named if name not in OPERANDS and not _is_result(name, backward))
    if left:
        raise OptionError(f"{path}: it has {', '.join(left)}; needed operands ({', '.join(OPERANDS)}) and results")
    return Case(texts["op"], operands, _options(path, texts.get("options", "{}")), results, texts.get("name", ""))


def _is_result(name: str, backward: bool) -> bool:
    """Of a backward the results are gradients of operands; ``grad_out`` and ``grad_next_state`` are operands."""
    gradient = name.removeprefix(_GRADIENT) in OPERANDS and name.startswith(_GRADIENT) and name not in OPERANDS
    return gradient if backward else name in RESULTS


def _text(path: Any, name: str, array: Array) -> str:
    if array.ndim or array.dtype.kind != "U":
        raise OptionError(f"{path}: {name} is an array {array.shape} of {array.dtype}; needed a text")
    return str(array)


def _floating(path: Any, name: str, array: Array) -> tuple[str, Array]:
    if name.startswith(_BFLOAT16) and array.dtype == np.uint16:
        from ml_dtypes import bfloat16

        return name.removeprefix(_BFLOAT16), array.view(bfloat16)
    if not is_supported(array.dtype):
        raise OptionError(f"{path}: {name} has dtype {array.dtype}; needed float16, bfloat16, float32 or float64")
    return name, array


def _options(path: Any, text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path}: options are no JSON ({error}); needed an object") from None
    if not isinstance(options, dict):
        raise OptionError(f"{path}: options are {text[:80]}; needed a JSON object of options by name")
    return {name: _tuples(value) for name, value in options.items()}


def _tuples(value: Any) -> Any:
    """JSON has lists where options are tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
