"""The house: who may import whom, what the package never does, what importing costs, the contract's signatures."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import npdwconv
from npdwconv import dispatch

ROOT = Path(npdwconv.__file__).parent

# A module imports only from strictly lower floors; a folder is one room, whose modules may import one another.
FLOORS = (
    ("errors", "layouts", "precision", "presence", "console"),
    ("options", "activations", "cases", "device", "memory"),
    ("geometry", "arguments", "dispatch", "threads", "interop"),
    ("kernels", "cost", "info", "recalled"),
    ("plans",),
    ("depthwise", "transpose", "pointwise", "separable", "tokens", "causal", "folding"),
    ("layers", "picture", "njit", "verify"),
    ("models", "trace", "warmup"),
    ("bench",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FRAMEWORKS = {"torch", "jax", "tensorflow", "keras", "onnx", "onnxruntime", "mlx", "openvino"}

SOURCES = {path.relative_to(ROOT).with_suffix("").parts: path for path in sorted(ROOT.rglob("*.py"))}
every_module = pytest.mark.parametrize("parts", SOURCES, ids="/".join)


def tree(parts: tuple[str, ...]) -> ast.Module:
    return ast.parse(SOURCES[parts].read_text())


def imported(parts: tuple[str, ...]) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree(parts)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(names: set[str]) -> set[str]:
    inner = {name.split(".")[1] for name in names if name.startswith("npdwconv.")}
    return inner & set(FLOOR)


def test_every_room_has_a_floor():
    assert {parts[0] for parts in SOURCES} - {"__init__"} == set(FLOOR)


@every_module
def test_imports_come_from_lower_floors(parts):
    if parts == ("__init__",):
        return
    room = parts[0]
    assert {other for other in rooms_of(imported(parts)) if other != room and FLOOR[other] >= FLOOR[room]} == set()


@every_module
def test_outside_packages_stay_in_their_rooms(parts):
    outside = {name.split(".")[0] for name in imported(parts)}
    assert "hypothesis" not in outside
    assert not (outside & {"numba", "llvmlite"}) or parts[:2] in (("kernels", "cpu"), ("kernels", "cuda"))
    assert not (outside & FRAMEWORKS) or parts[0] in ("interop", "bench")
    assert "numpy" not in outside or parts not in (("geometry",), ("options",))


@every_module
def test_no_asserts_no_prints_and_a_docstring(parts):
    assert ast.get_docstring(tree(parts)), "the first line of a module names its room"
    for node in ast.walk(tree(parts)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert is no validation"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print" or parts == ("cli",), f"line {node.lineno}: print"


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return run.stdout.strip()


def test_importing_loads_nothing_optional():
    loaded = python("import npdwconv, sys; print(*{name.split('.')[0] for name in sys.modules})").split()
    optional = {"numba", "llvmlite", "ml_dtypes", "safetensors", "rich", "matplotlib", "PIL", "skimage", "scipy"}
    assert not set(loaded) & (optional | FRAMEWORKS)


def test_importing_is_quick():
    code = "import numpy, time; t = time.perf_counter(); import npdwconv; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(5)) < 0.15


@pytest.mark.parametrize("operation", dispatch.TABLE)
def test_an_operation_has_one_signature_on_every_backend(operation):
    room, backends = dispatch.TABLE[operation]
    assert backends
    kernels = [getattr(import_module(f"{dispatch.ROOMS[backend]}.{room}"), operation) for backend in backends]
    assert len({tuple(inspect.signature(kernel).parameters) for kernel in kernels}) == 1


CONV = "stride padding dilation padding_mode layout"
SIGNATURES = {
    "depthwise_conv{}d": f"x weight bias * {CONV} activation backend out",
    "depthwise_conv{}d_backward": f"grad_out x weight bias * {CONV} activation needs backend",
    "depthwise_conv{}d_input_grad": f"grad_out weight input_shape * {CONV} backend",
    "depthwise_conv{}d_weight_grad": f"grad_out x weight_shape * {CONV} backend",
    "depthwise_conv_transpose{}d": (
        "x weight bias * stride padding output_padding dilation layout activation backend out"
    ),
    "depthwise_conv_transpose{}d_backward": (
        "grad_out x weight bias * stride padding output_padding dilation layout activation needs backend"
    ),
    "separable_conv{}d": (
        f"x depthwise_weight pointwise_weight bias * depthwise_bias {CONV} depthwise_activation activation backend out"
    ),
    "separable_conv{}d_backward": (
        "grad_out x depthwise_weight pointwise_weight bias * depthwise_bias "
        f"{CONV} depthwise_activation activation needs backend"
    ),
    "pointwise_conv": "x weight bias * layout activation backend out",
    "pointwise_conv_backward": "grad_out x weight bias * layout activation needs backend",
    "depthwise_conv_tokens": "x weight bias * grid stride padding dilation padding_mode activation backend out",
    "depthwise_conv_tokens_backward": (
        "grad_out x weight bias * grid stride padding dilation padding_mode activation needs backend"
    ),
    "causal_depthwise_conv1d": "x weight bias * state activation layout backend",
    "causal_depthwise_conv1d_backward": (
        "grad_out x weight bias * state grad_next_state activation layout needs backend"
    ),
    "fold_batchnorm": "weight bias gamma beta mean var * eps",
}
OPERATORS = [(name.format(rank), wanted) for name, wanted in SIGNATURES.items() for rank in (1, 2, 3)]


@pytest.mark.parametrize(("name", "wanted"), dict(OPERATORS).items())
def test_signature(name, wanted):
    function = getattr(npdwconv, name)
    assert name in npdwconv.__all__
    assert function.__name__ == function.__qualname__ == name
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert len(positional) + len(keywords) == len(parameters)
    assert " ".join([*positional, "*", *keywords]) == wanted


@pytest.mark.parametrize("name", dict(OPERATORS))
def test_docstring_has_every_section(name):
    text = getattr(npdwconv, name).__doc__
    missing = [part for part in ("Args:", "Returns:", "Raises:", ">>> ") if part not in text]
    assert not missing
    assert re.findall(r"\{\w+\}", text) == [], "unfilled letters"


def test_all_is_what_is_public():
    types_and_functions = {
        name for name, value in vars(npdwconv).items() if not name.startswith("_") and callable(value)
    }
    assert types_and_functions == set(npdwconv.__all__)
    assert all(getattr(npdwconv, name).__doc__ for name in npdwconv.__all__)
    assert [getattr(npdwconv, name).__name__ for name in npdwconv.__all__] == npdwconv.__all__
