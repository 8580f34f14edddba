"""PyTorch, eager, in inference mode: contiguous (NCHW) and channels_last tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from npdwconv.bench.cases import Case
from npdwconv.bench.network import Step, program
from npdwconv.bench.operands import Operands, laid
from npdwconv.bench.participant import Way
from npdwconv.layouts import Array

torch: Any = None  # `setup` imports it
functional: Any = None
Call = Callable[[], Any]


def setup(threads: int) -> str:
    global torch, functional
    torch = import_module("torch")
    functional = torch.nn.functional
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return str(torch.__version__)


def ways(case: Case, given: Operands) -> Iterator[tuple[str, Callable[[], Way]]]:
    """Both memory formats; a matrix product where the case is one; tokens with transposes and as a view."""
    if case.operation == "tokens_fwd":
        yield "module with transposes", partial(_tokens_module, case, given)
        yield "channels_last view", partial(_tokens_view, case, given)
        return
    yield "NCHW", partial(_image, case, given, False)
    if case.rank == 2:
        yield "channels_last", partial(_image, case, given, True)
    if case.operation.startswith("pointwise"):
        yield "matmul", partial(_product, case, given)


def _image(case: Case, given: Operands, last: bool) -> Way:
    a = {name: _tensor(array, last and name in ("x", "grad_out")) for name, array in given.items()}
    call = _CALLS[case.operation](case, a)
    return Way(_inferring(call), _numpy)


def _tensor(array: Array, last: bool) -> Any:
    found = torch.from_numpy(laid(array))
    return found.contiguous(memory_format=torch.channels_last) if last else found


def _inferring(call: Call) -> Call:
    def run() -> Any:
        with torch.inference_mode():
            return call()

    return run


def _numpy(tensor: Any) -> Array:
    found: Array = tensor.contiguous().numpy()
    return found


def _convolution(case: Case) -> Callable[..., Any]:
    """The depthwise convolution of (x, weight, bias); padding in front alone is padding on both sides, cut off."""
    operator = {1: functional.conv1d, 2: functional.conv2d}[case.rank]
    settings = {"stride": case.stride, "padding": case.padding[0][0], "dilation": case.dilation}
    convolve = partial(operator, **settings, groups=case.channels)
    if not case.causal:
        return convolve
    return lambda *operands: convolve(*operands)[..., : case.size[0]]


def _forward(case: Case, a: dict[str, Any]) -> Call:
    return partial(_convolution(case), a["x"], a["depthwise_weight"], a["depthwise_bias"])


def _gradient(case: Case, a: dict[str, Any], mask: list[bool], pointwise: bool) -> Call:
    rank = case.rank
    weight = a["weight"].reshape(case.outputs, -1, *(1,) * rank) if pointwise else a["depthwise_weight"]
    settings = (
        [case.stride] * rank,
        [case.padding[0][0]] * rank,
        [case.dilation] * rank,
        False,
        [0] * rank,
        1 if pointwise else case.channels,
    )
    backward, x, grad_out, place = torch.ops.aten.convolution_backward, a["x"], a["grad_out"], mask.index(True)
    extra = case.padding[0][0] if case.causal else 0

    def run() -> Any:
        grad = functional.pad(grad_out, (0, extra)) if extra else grad_out
        return backward(grad, x, weight, None, *settings, mask)[place]

    return run


def _depthwise_input(case: Case, a: dict[str, Any]) -> Call:
    return _gradient(case, a, [True, False, False], False)


def _depthwise_weight(case: Case, a: dict[str, Any]) -> Call:
    return _gradient(case, a, [False, True, False], False)


def _pointwise(case: Case, a: dict[str, Any]) -> Call:
    return partial(functional.conv2d, a["x"], a["weight"][:, :, None, None], a["bias"])


def _pointwise_input(case: Case, a: dict[str, Any]) -> Call:
    return _gradient(case, a, [True, False, False], True)


def _pointwise_weight(case: Case, a: dict[str, Any]) -> Call:
    gradient = _gradient(case, a, [False, True, False], True)
    return lambda: gradient().reshape(case.outputs, case.channels)


def _separable(case: Case, a: dict[str, Any]) -> Call:
    depthwise = _convolution(case)
    x, weight = a["x"], a["weight"][:, :, None, None]

    def run() -> Any:
        middle = depthwise(x, a["depthwise_weight"], a["depthwise_bias"]).clamp_(0, 6)
        return functional.conv2d(middle, weight, a["bias"]).clamp_(0, 6)

    return run


def _network(case: Case, a: dict[str, Any]) -> Call:
    steps = [(step, _parameter(step.weight), _parameter(step.bias)) for step in program()]
    kept = {step.source for step, _, _ in steps if step.kind == "add"}

    def run() -> Any:
        x, values = a["x"], {}
        for number, (step, weight, bias) in enumerate(steps):
            if number in kept:
                values[number] = x
            x = x + values.pop(step.source) if step.kind == "add" else _step(step, weight, bias, x)
        return x

    return run


def _parameter(array: Array | None) -> Any:
    return None if array is None else torch.from_numpy(laid(array))


def _step(step: Step, weight: Any, bias: Any, x: Any) -> Any:
    if step.kind == "pool":
        return x.mean((2, 3))
    if step.kind == "linear":
        return functional.linear(x, weight, bias)
    (top, bottom), (left, right) = step.padding
    if (top, left) != (bottom, right):
        x, top, left = functional.pad(x, (left, right, top, bottom)), 0, 0
    y = functional.conv2d(x, weight, bias, step.stride, (top, left), 1, step.groups)
    return y.clamp_(0, 6) if step.relu6 else y


def _tokens_module(case: Case, given: Operands) -> Way:
    """``DWConv`` of SegFormer: (B, N, C) to NCHW and back around the convolution."""
    weight, bias = (torch.from_numpy(laid(given[name])) for name in ("depthwise_weight", "depthwise_bias"))
    x, convolve, shape = _tokens(given), _convolution(case), (case.batch, case.channels, *case.size)

    def run() -> Any:
        return convolve(x.transpose(1, 2).view(shape), weight, bias).flatten(2).transpose(1, 2)

    return Way(_inferring(run), partial(_from_tokens, case))


def _tokens_view(case: Case, given: Operands) -> Way:
    weight, bias = (torch.from_numpy(laid(given[name])) for name in ("depthwise_weight", "depthwise_bias"))
    x, convolve = _tokens(given), _convolution(case)

    def run() -> Any:
        image = x.view(case.batch, *case.size, case.channels).permute(0, 3, 1, 2)
        return convolve(image, weight, bias).permute(0, 2, 3, 1).reshape(x.shape)

    return Way(_inferring(run), partial(_from_tokens, case))


def _tokens(given: Operands) -> Any:
    image = torch.from_numpy(laid(given["x"]))
    return image.flatten(2).transpose(1, 2).contiguous()


def _from_tokens(case: Case, tokens: Any) -> Array:
    return _numpy(tokens.transpose(1, 2).reshape(case.batch, case.channels, *case.size))


def _product(case: Case, given: Operands) -> Way:
    x = torch.from_numpy(laid(given["x"])).flatten(2).transpose(1, 2).reshape(-1, case.channels).contiguous()
    weight = torch.from_numpy(laid(given["weight"]))
    spatial = case.geometry.out

    def image(matrix: Any) -> Array:
        return _numpy(matrix.reshape(case.batch, *spatial, -1).permute(0, 3, 1, 2))

    if case.operation == "pointwise_fwd":
        return Way(_inferring(partial(functional.linear, x, weight, torch.from_numpy(laid(given["bias"])))), image)
    grad = torch.from_numpy(laid(given["grad_out"])).flatten(2).transpose(1, 2).reshape(-1, case.outputs).contiguous()
    if case.operation == "pointwise_bwd_input":
        return Way(_inferring(partial(torch.mm, grad, weight)), image)
    return Way(_inferring(partial(torch.mm, grad.t(), x)), _numpy)


_CALLS: dict[str, Callable[[Case, dict[str, Any]], Call]] = {
    "depthwise_fwd": _forward,
    "depthwise_bwd_input": _depthwise_input,
    "depthwise_bwd_weight": _depthwise_weight,
    "pointwise_fwd": _pointwise,
    "pointwise_bwd_input": _pointwise_input,
    "pointwise_bwd_weight": _pointwise_weight,
    "separable_fwd": _separable,
    "network_fwd": _network,
}
