"""Honest results of frameworks and of our own backends: none may be flagged, and the bounds should be near.

`python tests/honest.py --markdown docs/_honest.md` runs all of them and writes the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import npdwconv
from npdwconv import use_backend, verify
from npdwconv.verify import Case

Run = Callable[[Case], dict[str, np.ndarray]]


def random_case(rng: np.random.Generator) -> Case:
    """A float32 convolution or a backward of one, such as frameworks have it: channels first, symmetric padding."""
    channels, many, kernel = int(rng.integers(1, 24)), int(rng.integers(1, 3)), int(rng.integers(1, 6))
    size = tuple(int(n) for n in rng.integers(kernel + 2, 24, 2))
    x = rng.standard_normal((int(rng.integers(1, 3)), channels, *size), dtype=np.float32) * 2.0 ** int(
        rng.integers(-8, 8)
    )
    x = np.ascontiguousarray(x, dtype=np.float32)
    if rng.random() < 0.3:
        x = np.maximum(x, 0)  # after a ReLU
    if rng.random() < 0.4:
        outputs = int(rng.integers(1, 64))
        weight = rng.standard_normal((outputs, channels), dtype=np.float32)
        return _maybe_backward(Case("pointwise_conv", {"x": x, "weight": weight, "bias": _bias(rng, outputs)}), rng)
    options = {"stride": int(rng.integers(1, 4)), "padding": int(rng.integers(0, kernel)), "dilation": 1}
    weight = rng.standard_normal((channels * many, 1, kernel, kernel), dtype=np.float32)
    case = Case("depthwise_conv2d", {"x": x, "weight": weight, "bias": _bias(rng, channels * many)}, options)
    return _maybe_backward(case, rng)


def _bias(rng: np.random.Generator, channels: int) -> np.ndarray:
    return rng.standard_normal(channels, dtype=np.float32)


def _maybe_backward(case: Case, rng: np.random.Generator) -> Case:
    if rng.random() < 0.6:
        return case
    out = getattr(npdwconv, case.op)(**case.operands, **case.options, backend="reference")
    grad = rng.standard_normal(out.shape, dtype=np.float32)
    return Case(f"{case.op}_backward", {"grad_out": grad} | case.operands, case.options)


def ours(backend: str, case: Case) -> dict[str, np.ndarray]:
    with use_backend(backend):
        found = getattr(npdwconv, case.op)(**case.operands, **case.options)
    return found._asdict() if isinstance(found, tuple) else {"out": found}


def torch_of(last: bool, case: Case) -> dict[str, np.ndarray]:
    """PyTorch, its tensors in either memory format."""
    import torch

    given = {name: torch.from_numpy(array) for name, array in case.operands.items()}
    if case.op.startswith("pointwise"):
        given["weight"] = given["weight"][:, :, None, None]
    if last:
        given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    backward = case.op.endswith("_backward")
    leaves = [given[name].requires_grad_(backward) for name in ("x", "weight", "bias")]
    groups = 1 if case.op.startswith("pointwise") else given["x"].shape[1]
    out = torch.nn.functional.conv2d(*leaves, **case.options, groups=groups)
    if not backward:
        return {"out": out.numpy()}
    found = torch.autograd.grad(out, leaves, given["grad_out"])
    shapes = [case.operands[name].shape for name in ("x", "weight", "bias")]
    return {
        name: grad.numpy().reshape(shape)
        for name, grad, shape in zip(("x", "weight", "bias"), found, shapes, strict=True)
    }


def jax_of(case: Case) -> dict[str, np.ndarray]:
    import jax

    jax.config.update("jax_platforms", "cpu")
    options = {"stride": 1, "padding": 0, "dilation": 1} | case.options
    pointwise = case.op.startswith("pointwise")

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        kernel = weight[:, :, None, None] if pointwise else weight
        groups = 1 if pointwise else x.shape[1]
        stride, pads = (options["stride"],) * 2, [(options["padding"],) * 2] * 2
        out = jax.lax.conv_general_dilated(x, kernel, stride, pads, feature_group_count=groups)
        return out + bias[None, :, None, None]

    leaves = [case.operands[name] for name in ("x", "weight", "bias")]
    if not case.op.endswith("_backward"):
        return {"out": np.asarray(forward(*leaves))}
    found = jax.vjp(forward, *leaves)[1](case.operands["grad_out"])
    return {name: np.asarray(grad) for name, grad in zip(("x", "weight", "bias"), found, strict=True)}


def model_of(case: Case) -> bytes | None:
    """A forward as an ONNX model of one node."""
    import onnx

    if case.op.endswith("_backward"):
        return None
    x, weight, bias = (case.operands[name] for name in ("x", "weight", "bias"))
    options = {"stride": 1, "padding": 0, "dilation": 1} | case.options
    kernel = weight[:, :, None, None] if case.op.startswith("pointwise") else weight
    attributes = {"strides": [options["stride"]] * 2, "pads": [options["padding"]] * 4}
    groups = 1 if case.op.startswith("pointwise") else x.shape[1]
    node = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], group=groups, **attributes)
    constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(a), n) for a, n in ((kernel, "w"), (bias, "b"))]
    taken = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)]
    given = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph([node], "g", taken, given, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


def onnxruntime_of(case: Case) -> dict[str, np.ndarray]:
    import onnxruntime

    model = model_of(case)
    if model is None:
        return {}
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return {"out": session.run(["y"], {"x": case.operands["x"]})[0]}


def openvino_of(case: Case) -> dict[str, np.ndarray]:
    import openvino

    model = model_of(case)
    if model is None:
        return {}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {"out": np.array(compiled([case.operands["x"]])[0])}


def shuffled(case: Case) -> dict[str, np.ndarray]:
    """A pointwise forward whose channels are added one after the other in a random order, each sum rounded."""
    if case.op != "pointwise_conv":
        return {}
    x, weight, bias = (case.operands[name] for name in ("x", "weight", "bias"))
    order = np.random.default_rng(x.size).permutation(x.shape[1])
    total = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]), np.float32)
    for channel in order:
        total += weight[:, channel][None, :, None, None] * x[:, channel][:, None]
    return {"out": total + bias[None, :, None, None]}


WHO: dict[str, tuple[Run, int]] = {
    "npdwconv, reference": (partial(ours, "reference"), 1800),
    "npdwconv, numba": (partial(ours, "numba"), 60),
    "any order of channels, one after the other": (shuffled, 2000),
    "PyTorch, NCHW": (partial(torch_of, False), 1500),
    "PyTorch, channels_last": (partial(torch_of, True), 1500),
    "JAX": (jax_of, 100),
    "onnxruntime": (onnxruntime_of, 800),
    "OpenVINO": (openvino_of, 200),
}


def ratios(run: Run, cases: int, seed: int = 0) -> Iterator[tuple[Case, verify.Report]]:
    """The reports of a participant's results for so many random cases, those that it does not have left out."""
    rng = np.random.default_rng(seed)
    for _ in range(cases):
        case = random_case(rng)
        observed = run(case)
        if observed:
            whole = Case(case.op, case.operands, case.options, observed)
            yield whole, verify.check(whole, diagnose=False)


def row(name: str, run: Run, cases: int) -> tuple[str, int, int]:
    reports = [report for _, report in ratios(run, cases)]
    worst = np.array([report.worst_ratio for report in reports])
    alarms = int(np.count_nonzero(worst > 1))
    text = f"| {name} | {len(worst)} | {alarms} | {np.median(worst):.2f} | {worst.max():.2f} |"
    return text, len(worst), alarms


def markdown() -> str:
    rows = [row(name, *participant) for name, participant in WHO.items()]
    cases, alarms = (sum(each[place] for each in rows) for place in (1, 2))
    head = "| who computed it | cases | false alarms | median of worst ratios | largest |\n|---|---:|---:|---:|---:|"
    intro = (
        "## Honest results\n\nRandom float32 cases, depthwise and pointwise, forward and (of PyTorch, JAX and "
        "npdwconv) backward, as each framework computes them: no right result may be flagged, and errors near the "
        f"bounds show that these are not loose. {cases} cases, {alarms} false alarms; `python tests/honest.py` repeats "
        "it.\n\n"
    )
    return f"<!-- generated by tests/honest.py -->\n{intro}{head}\n" + "\n".join(text for text, _, _ in rows) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Checks honest results and tabulates how near their bounds they come.")
    parser.add_argument("--markdown", type=Path, help="file to write")
    target, text = parser.parse_args().markdown, markdown()
    print(text) if target is None else target.write_text(text)
