"""Honest results of frameworks and of our own backends: none may be flagged, and the bounds should be near.

`python tests/honest.py --markdown docs/_honest.md` runs all of them and writes the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from planted_layers import convolutions_of_lite0

import npdwconv
from npdwconv import use_backend, verify
from npdwconv.verify import Case

Results = dict[str, np.ndarray]
Run = Callable[[Case], Results]
LEAVES = ("x", "weight", "bias")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Window(NamedTuple):
    """A depthwise case's options, per axis; of a pointwise one, none."""

    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool

    @property
    def lows(self) -> tuple[int, ...]:
        return tuple(low for low, _ in self.pads)

    @property
    def even(self) -> bool:
        return all(low == high for low, high in self.pads)


def window(case: Case) -> Window:
    rank = case.operands["x"].ndim - 2
    groups = 1 if case.op.startswith("pointwise") else case.operands["x"].shape[1]
    ones = (1,) * rank
    pads = case.options.get("padding", ((0, 0),) * rank)
    return Window(
        case.options.get("stride", ones), pads, case.options.get("dilation", ones), groups, "transpose" in case.op
    )


def kernel(case: Case) -> np.ndarray:
    """The weight as frameworks have it: (outputs, inputs of a group, *kernel), of a transposed one the reverse."""
    weight, x = case.operands["weight"], case.operands["x"]
    if weight.ndim == 2:
        return weight.reshape(*weight.shape, *(1,) * (x.ndim - 2))
    return weight.reshape(x.shape[1], -1, *weight.shape[2:]) if window(case).transposed else weight


def dtype_of(storage: str) -> np.dtype[Any]:
    return BFLOAT16 if storage == "bfloat16" else np.dtype(storage)


def random_case(rng: np.random.Generator, storage: str = "float32") -> Case:
    """A convolution or a backward of one, such as frameworks have it: channels first, in one to three dimensions."""
    rank = int(rng.choice([2, 2, 2, 1, 3]))
    channels, many = int(rng.integers(1, 24 if rank < 3 else 6)), int(rng.integers(1, 3))
    least = 7 if rank < 3 else 5
    size = tuple(int(n) for n in rng.integers(least, 24 if rank < 3 else 9, rank))
    shape = (int(rng.integers(1, 3)), channels, *size)
    x = rng.standard_normal(shape, dtype=np.float32) * 2.0 ** int(rng.integers(-8, 8) if storage == "float32" else 0)
    if rng.random() < 0.3:
        x = np.maximum(x, 0)  # after a ReLU

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        outputs = int(rng.integers(1, 64))
        op, weight = "pointwise_conv", drawn(outputs, channels)
    else:
        outputs, extent = channels * many, tuple(int(n) for n in rng.integers(1, 6 if rank < 3 else 4, rank))
        op = f"depthwise_conv_transpose{rank}d" if rng.random() < 0.2 else f"depthwise_conv{rank}d"
        dilation = tuple(
            int(d) if (n - 1) * d < least else 1 for n, d in zip(extent, rng.integers(1, 3, rank), strict=True)
        )
        pads = tuple((int(p), int(p)) for p in (rng.integers(0, n) for n in extent))
        options = {"stride": tuple(int(s) for s in rng.integers(1, 4, rank)), "padding": pads, "dilation": dilation}
        weight = drawn(outputs, 1, *extent)
    case = Case(
        op, {"x": x.astype(storage), "weight": weight.astype(storage), "bias": drawn(outputs).astype(storage)}, options
    )
    return case if rng.random() < 0.6 else backward_of(case, rng)


def backward_of(case: Case, rng: np.random.Generator) -> Case:
    out = ours("reference", case)["out"]
    grad = rng.standard_normal(out.shape, dtype=np.float32).astype(out.dtype)
    return Case(f"{case.op}_backward", {"grad_out": grad} | case.operands, case.options)


def ours(backend: str, case: Case) -> Results:
    with use_backend(backend):
        found = getattr(npdwconv, case.op)(**case.operands, **case.options)
    return found._asdict() if isinstance(found, tuple) else {"out": found}


def torch_of(case: Case, *, last: bool = False) -> Results:
    """PyTorch, its tensors in either memory format."""
    import torch

    w, rank = window(case), case.operands["x"].ndim - 2
    if last and rank == 1:
        return {}
    kept = {2: torch.channels_last, 3: torch.channels_last_3d}
    given = {name: tensor_of(array) for name, array in case.operands.items()}
    given["weight"] = tensor_of(kernel(case))
    if last:
        given["x"] = given["x"].contiguous(memory_format=kept[rank])
    backward = case.op.endswith("_backward")
    x, weight, bias = (given[name].requires_grad_(backward) for name in LEAVES)
    f = torch.nn.functional
    run = getattr(f, f"conv{'_transpose' if w.transposed else ''}{rank}d")
    options: dict[str, Any] = {"stride": w.stride, "padding": w.lows, "dilation": w.dilation, "groups": w.groups}
    padded = x
    if not w.even:
        padded = f.pad(x, [extent for pair in reversed(w.pads) for extent in pair])
        options["padding"] = 0
    out = run(padded, weight, bias, **options)
    if not backward:
        return {"out": array_of(out)}
    found = torch.autograd.grad(out, (x, weight, bias), given["grad_out"])
    return {name: array_of(grad).reshape(case.operands[name].shape) for name, grad in zip(LEAVES, found, strict=True)}


def tensor_of(array: np.ndarray) -> Any:
    """NumPy's and PyTorch's bfloat16 have no common name."""
    import torch

    array = np.ascontiguousarray(array)
    return (
        torch.from_numpy(array)
        if array.dtype != BFLOAT16
        else torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    )


def array_of(tensor: Any) -> np.ndarray:
    import torch

    array: np.ndarray = (
        tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    )
    return array


def jax_of(case: Case) -> Results:
    import jax

    jax.config.update("jax_platforms", "cpu")
    w = window(case)
    if w.transposed:
        return {}

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        taps = weight.reshape(kernel(case).shape)
        out = jax.lax.conv_general_dilated(
            x, taps, w.stride, w.pads, rhs_dilation=w.dilation, feature_group_count=w.groups
        )
        return out + bias.reshape(1, -1, *(1,) * (x.ndim - 2))

    leaves = [case.operands[name] for name in LEAVES]
    if not case.op.endswith("_backward"):
        return {"out": np.asarray(forward(*leaves))}
    found = jax.vjp(forward, *leaves)[1](case.operands["grad_out"])
    return {name: np.asarray(grad) for name, grad in zip(LEAVES, found, strict=True)}


def model_of(case: Case) -> bytes | None:
    """A forward as an ONNX model of one node."""
    import onnx

    if case.op.endswith("_backward"):
        return None
    w, x = window(case), case.operands["x"]
    highs = tuple(high for _, high in w.pads)
    attributes = {"strides": w.stride, "pads": (*w.lows, *highs), "dilations": w.dilation, "group": w.groups}
    kind = "ConvTranspose" if w.transposed else "Conv"
    node = onnx.helper.make_node(kind, ["x", "w", "b"], ["y"], **attributes)
    constants = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        for array, name in ((kernel(case), "w"), (case.operands["bias"], "b"))
    ]
    taken = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)]
    given = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph([node], "g", taken, given, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


def onnxruntime_of(case: Case) -> Results:
    import onnxruntime

    model = model_of(case)
    if model is None:
        return {}
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return {"out": session.run(["y"], {"x": case.operands["x"]})[0]}


def openvino_of(case: Case) -> Results:
    import openvino

    model = model_of(case)
    if model is None:
        return {}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {"out": np.array(compiled([case.operands["x"]])[0])}


def shuffled(case: Case) -> Results:
    """A pointwise forward whose channels are added one after the other in a random order, each sum rounded."""
    if case.op != "pointwise_conv":
        return {}
    x, weight, bias = (case.operands[name] for name in LEAVES)
    order = np.random.default_rng(x.size).permutation(x.shape[1])
    total = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]), np.float32)
    each = (slice(None), *(None,) * (x.ndim - 2))
    for channel in order:
        total += weight[:, channel][each] * x[:, channel][:, None]
    return {"out": total + bias[each]}


def forward_of(run: Run, case: Case) -> Results:
    """What gathers its sums: PyTorch on a CPU adds parts of the others in 16 bits, where arrays have these."""
    return {} if "backward" in case.op or "transpose" in case.op else run(case)


class Participant(NamedTuple):
    run: Run
    cases: int  # random ones that are tried: not every participant has every operator
    storage: str = "float32"
    compute: str | None = None
    real: bool = True  # whether it also runs the layers of EfficientNet-Lite0


WHO: dict[str, Participant] = {
    "npdwconv, reference": Participant(partial(ours, "reference"), 1200),
    "npdwconv, numba": Participant(partial(ours, "numba"), 30),
    "any order of channels, one after the other": Participant(shuffled, 1500),
    "PyTorch, NCHW": Participant(torch_of, 1500),
    "PyTorch, channels_last": Participant(partial(torch_of, last=True), 1500),
    "PyTorch, float64": Participant(torch_of, 300, "float64", real=False),
    "PyTorch, float16": Participant(partial(forward_of, torch_of), 300, "float16", real=False),
    "PyTorch, bfloat16": Participant(partial(forward_of, torch_of), 300, "bfloat16", real=False),
    "PyTorch, float16 with sums in it": Participant(torch_of, 300, "float16", "float16_accumulation", real=False),
    "PyTorch, bfloat16 with sums in it": Participant(torch_of, 300, "bfloat16", "bfloat16_accumulation", real=False),
    "JAX": Participant(jax_of, 120),
    "onnxruntime": Participant(onnxruntime_of, 1000),
    "OpenVINO": Participant(openvino_of, 250),
}


def reports(participant: Participant, cases: Iterator[Case]) -> Iterator[verify.Report]:
    """On a participant's results for the cases, those that it does not have left out."""
    for case in cases:
        observed = participant.run(case)
        if observed:
            yield verify.check(replace(case, observed=observed), compute=participant.compute, diagnose=False)


def random_cases(count: int, storage: str, seed: int = 0) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    return (random_case(rng, storage) for _ in range(count))


HEAD = ["who computed it", "cases", "false alarms", "5 %", "25 %", "median", "75 %", "95 %", "largest"]


def row(name: str, found: list[verify.Report]) -> list[str]:
    worst = np.array([report.worst_ratio for report in found])
    alarms = sum(not report.ok for report in found)
    spread = np.quantile(worst, [0.05, 0.25, 0.5, 0.75, 0.95, 1.0])
    return [
        name,
        str(len(found)),
        str(alarms),
        *(f"{value:.2g}" if value < 0.1 else f"{value:.2f}" for value in spread),
    ]


def table(rows: list[list[str]]) -> str:
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def markdown() -> str:
    drawn = [row(name, list(reports(who, random_cases(who.cases, who.storage)))) for name, who in WHO.items()]
    layers = list(convolutions_of_lite0())
    real = [row(name, found) for name, who in WHO.items() if who.real and (found := list(reports(who, iter(layers))))]
    cases, alarms = (sum(int(each[place]) for each in [*drawn, *real]) for place in (1, 2))
    return f"""<!-- generated by tests/honest.py -->
## Honest results

What each framework makes of random cases: depthwise, transposed and pointwise, in one to three dimensions, forward and
(of PyTorch, JAX and npdwconv) backward, in float32 unless said. No right result may be flagged, and worst errors near
their bounds show that these are not loose. {cases} cases in both tables, {alarms} false alarms;
`python tests/honest.py` repeats it. Columns are quantiles of each case's `worst_ratio`.

{table(drawn)}
The {len(layers)} convolutions of EfficientNet-Lite0 with its pretrained weights, without activations, on a photograph:

{table(real)}"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Checks honest results and tabulates how near their bounds they come.")
    parser.add_argument("--markdown", type=Path, help="file to write")
    target, text = parser.parse_args().markdown, markdown()
    print(text) if target is None else target.write_text(text)
