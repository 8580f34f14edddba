"""The main job: a photograph through a pretrained network, forward and backward. Needs the extra ``demo``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from npdwconv.console import count, table
from npdwconv.cost import Cost, cost
from npdwconv.dispatch import explain_backend
from npdwconv.errors import OptionError
from npdwconv.layers import Layer
from npdwconv.layouts import LAYOUTS
from npdwconv.models import EfficientNetLite0, preprocess
from npdwconv.options import integer, one_of
from npdwconv.picture import draw, saliency
