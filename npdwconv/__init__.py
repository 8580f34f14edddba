"""npdwconv: depthwise, pointwise and separable convolution, forward and backward, in NumPy and Numba."""

from npdwconv.causal import CausalGrads, causal_depthwise_conv1d, causal_depthwise_conv1d_backward
from npdwconv.depthwise import (
    depthwise_conv1d,
    depthwise_conv1d_backward,
    depthwise_conv1d_input_grad,
    depthwise_conv1d_weight_grad,
    depthwise_conv2d,
    depthwise_conv2d_backward,
    depthwise_conv2d_input_grad,
    depthwise_conv2d_weight_grad,
    depthwise_conv3d,
    depthwise_conv3d_backward,
    depthwise_conv3d_input_grad,
    depthwise_conv3d_weight_grad,
)
from npdwconv.dispatch import BackendChoice, backend_status, explain_backend, use_backend
from npdwconv.errors import BackendUnavailableError, CheckpointError, DTypeError, OptionError, ShapeError
from npdwconv.folding import fold_batchnorm
from npdwconv.plans import Grads
from npdwconv.pointwise import pointwise_conv, pointwise_conv_backward
from npdwconv.separable import (
    SeparableGrads,
    separable_conv1d,
    separable_conv1d_backward,
    separable_conv2d,
    separable_conv2d_backward,
    separable_conv3d,
    separable_conv3d_backward,
)
from npdwconv.threads import get_num_threads, set_num_threads
from npdwconv.tokens import depthwise_conv_tokens, depthwise_conv_tokens_backward
from npdwconv.transpose import (
    depthwise_conv_transpose1d,
    depthwise_conv_transpose1d_backward,
    depthwise_conv_transpose2d,
    depthwise_conv_transpose2d_backward,
    depthwise_conv_transpose3d,
    depthwise_conv_transpose3d_backward,
)
from npdwconv.warmup import Warmed, warmup

__version__ = "0.1.0"

__all__ = [
    "BackendChoice",
    "BackendUnavailableError",
    "CausalGrads",
    "CheckpointError",
    "DTypeError",
    "Grads",
    "OptionError",
    "SeparableGrads",
    "ShapeError",
    "Warmed",
    "backend_status",
    "causal_depthwise_conv1d",
    "causal_depthwise_conv1d_backward",
    "depthwise_conv1d",
    "depthwise_conv1d_backward",
    "depthwise_conv1d_input_grad",
    "depthwise_conv1d_weight_grad",
    "depthwise_conv2d",
    "depthwise_conv2d_backward",
    "depthwise_conv2d_input_grad",
    "depthwise_conv2d_weight_grad",
    "depthwise_conv3d",
    "depthwise_conv3d_backward",
    "depthwise_conv3d_input_grad",
    "depthwise_conv3d_weight_grad",
    "depthwise_conv_tokens",
    "depthwise_conv_tokens_backward",
    "depthwise_conv_transpose1d",
    "depthwise_conv_transpose1d_backward",
    "depthwise_conv_transpose2d",
    "depthwise_conv_transpose2d_backward",
    "depthwise_conv_transpose3d",
    "depthwise_conv_transpose3d_backward",
    "explain_backend",
    "fold_batchnorm",
    "get_num_threads",
    "pointwise_conv",
    "pointwise_conv_backward",
    "separable_conv1d",
    "separable_conv1d_backward",
    "separable_conv2d",
    "separable_conv2d_backward",
    "separable_conv3d",
    "separable_conv3d_backward",
    "set_num_threads",
    "use_backend",
    "warmup",
]
