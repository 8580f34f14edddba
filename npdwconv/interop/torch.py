"""PyTorch: what a module's convolutions were given and what they returned, as cases to verify."""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.cases import Captured, Case, Skipped
from npdwconv.errors import OptionError

_RANKS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3, "ConvTranspose1d": 1, "ConvTranspose2d": 2, "ConvTranspose3d": 3}


def capture_torch(module: Any, *inputs: Any) -> Captured:
    """Run a PyTorch module once, and keep each depthwise, pointwise and transposed depthwise convolution as a case.

    Args:
        module: a ``torch.nn.Module``, which is run as it is: without gradients, in its own mode and on its device.
        inputs: what it is called with.

    Returns:
        Captured(cases, skipped): a case for every call of a layer that our operators cover, under the layer's
        qualified name (``#2`` on its second call); the layers that they do not cover, and why.

    Raises:
        OptionError: ``module`` is no module, or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise OptionError("capture_torch needs PyTorch, which is not installed: pip install torch") from error
    if not isinstance(module, torch.nn.Module):
        raise OptionError(f"module is a {type(module).__name__}; needed a torch.nn.Module")
    found = Captured([], [])
    calls: dict[str, int] = {}
    hooks = []

    def watch(name: str, layer: Any) -> None:
        def seen(_: Any, given: Any, returned: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            _keep(found, name if calls[name] == 1 else f"{name}#{calls[name]}", layer, given[0], returned)

        hooks.append(layer.register_forward_hook(seen))

    try:
        for name, layer in module.named_modules():
            if type(layer).__name__ in _RANKS:
                watch(name or type(layer).__name__, layer)
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _keep(found: Captured, name: str, layer: Any, given: Any, returned: Any) -> None:
    kind = type(layer).__name__
    case = _case(name, kind, layer, given, returned)
    if isinstance(case, str):
        found.skipped.append(Skipped(name, kind, case))
    else:
        found.cases.append(case)


def _case(name: str, kind: str, layer: Any, given: Any, returned: Any) -> Case | str:
    """The case, or the reason why there is none."""
    rank, transposed = _RANKS[kind], kind.startswith("ConvTranspose")
    if given.dim() != rank + 2:
        return f"its input has {given.dim()} axes, no batch among them"
    if str(given.dtype) not in ("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"):
        return f"its dtype is {given.dtype}"
    x, weight, out = (_array(tensor) for tensor in (given, layer.weight, returned))
    operands = {"x": x, "weight": weight} | ({} if layer.bias is None else {"bias": _array(layer.bias)})
    if layer.groups == 1 and set(layer.kernel_size) == {1} and not transposed and _unpadded(layer.padding):
        strided = (..., *(slice(None, None, step) for step in layer.stride))
        operands["x"] = np.ascontiguousarray(x[strided])
        return Case("pointwise_conv", operands, {}, {"out": out}, name)
    if layer.groups != layer.in_channels:
        what = "standard" if layer.groups == 1 else f"grouped ({layer.groups} groups)"
        return f"a {what} convolution, {layer.in_channels} to {layer.out_channels} channels"
    options = {"stride": tuple(layer.stride), "padding": _padding(layer.padding), "dilation": tuple(layer.dilation)}
    if transposed:
        operands["weight"] = weight.reshape(-1, 1, *weight.shape[2:])
        options["output_padding"] = tuple(layer.output_padding)
        return Case(f"depthwise_conv_transpose{rank}d", operands, options, {"out": out}, name)
    if layer.padding_mode != "zeros":
        options["padding_mode"] = layer.padding_mode
    return Case(f"depthwise_conv{rank}d", operands, options, {"out": out}, name)


def _padding(padding: Any) -> Any:
    """PyTorch's ``"same"`` has the odd element at the high side, and a stride of 1: ours, too."""
    return padding if isinstance(padding, str) else tuple((int(width), int(width)) for width in padding)


def _unpadded(padding: Any) -> bool:
    return isinstance(padding, str) or set(padding) == {0}


def _array(tensor: Any) -> Any:
    """A copy of a tensor, which a layer below may write to; bfloat16 by its bits."""
    kept = tensor.detach().cpu()
    if str(kept.dtype) == "torch.bfloat16":
        import torch
        from ml_dtypes import bfloat16

        return np.array(kept.contiguous().view(torch.int16).numpy()).view(bfloat16)
    return np.array(kept.numpy())
