"""PyTorch: what a module's convolutions were given and what they returned, as cases to verify."""

from __future__ import annotations

from typing import Any

import numpy as np

from npdwconv.cases import Captured, Case, Skipped
from npdwconv.errors import OptionError
from npdwconv.interop.convolution import FLOATING, as_case
from npdwconv.interop.spelling import torch_options, torch_transpose_options

_KINDS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


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

    def watch(name: str, layer: Any, kind: str) -> None:
        def seen(_: Any, given: Any, named: dict[str, Any], returned: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            case = _case(name if calls[name] == 1 else f"{name}#{calls[name]}", layer, kind, given, named, returned)
            if isinstance(case, Skipped):
                found.skipped.append(case)
            else:
                found.cases.append(case)

        hooks.append(layer.register_forward_hook(seen, with_kwargs=True))

    try:
        for name, layer in module.named_modules():
            kind = next((each for each in _KINDS if isinstance(layer, getattr(torch.nn, each))), None)
            if kind is not None:
                watch(name or type(layer).__name__, layer, kind)
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _case(name: str, layer: Any, kind: str, given: Any, named: dict[str, Any], returned: Any) -> Case | Skipped:
    x = given[0] if given else named["input"]
    reason = _unread(layer, kind, x)
    if reason:
        return Skipped(name, type(layer).__name__, reason)
    transposed = kind.startswith("ConvTranspose")
    window = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    if transposed:
        sized = len(given) > 1 or "output_size" in named
        extra = _output_padding(layer, x, returned) if sized else layer.output_padding
        options = torch_transpose_options(**window, output_padding=extra)
    else:
        options = torch_options(**window, padding_mode=layer.padding_mode)
    tensors = {"x": x, "weight": layer.weight, "bias": layer.bias}
    operands = {each: None if tensor is None else _array(tensor) for each, tensor in tensors.items()}
    case = as_case(name, operands, _array(returned), layer.groups, options, transposed=transposed)
    return Skipped(name, type(layer).__name__, case) if isinstance(case, str) else case


def _unread(layer: Any, kind: str, x: Any) -> str:
    """Why a layer's call does not say what it computes; empty if it does."""
    import torch

    whole = getattr(torch.nn, kind)
    if any(getattr(type(layer), each, None) is not getattr(whole, each, None) for each in ("forward", "_conv_forward")):
        return f"a {kind} with a forward of its own"
    if x.dim() != layer.weight.dim():
        return f"its input has {x.dim()} axes, no batch among them"
    return "" if str(x.dtype).removeprefix("torch.") in FLOATING else f"its dtype is {x.dtype}"


def _output_padding(layer: Any, x: Any, returned: Any) -> tuple[int, ...]:
    """What a call with ``output_size`` adds at the high end."""
    axes = zip(
        x.shape[2:], returned.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True
    )
    return tuple(out - ((n - 1) * s - 2 * p + (k - 1) * d + 1) for n, out, k, s, p, d in axes)


def _array(tensor: Any) -> Any:
    """A copy of a tensor, which a layer below may write to; bfloat16 by its bits."""
    kept = tensor.detach().cpu()
    if str(kept.dtype) == "torch.bfloat16":
        import torch
        from ml_dtypes import bfloat16

        return np.array(kept.contiguous().view(torch.int16).numpy()).view(bfloat16)
    return np.array(kept.numpy())
