"""A failing layer as a picture: its worst plane, the errors there as shares of their bounds, bad ones by channel."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from npdwconv.errors import OptionError
from npdwconv.layouts import Array
from npdwconv.verify.report import Report


def check(path: str) -> None:
    """Raise OptionError where a picture could not be written to ``path``."""
    if Path(path).suffix.lower() != ".png":
        raise OptionError(f"--plot {path}: needed the name of a PNG file")
    if not Path(path).resolve().parent.is_dir():
        raise OptionError(f"--plot {path}: needed a name in a folder that exists")
    if find_spec("matplotlib") is None:
        raise OptionError("--plot needs matplotlib, which is not installed: pip install 'npdwconv[peers]'")


def draw(report: Report, path: str) -> None:
    """Write the picture.

    Raises:
        OptionError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    name = report.worst_array
    each = report.compared[name]
    channel_axis = 1 if name != "out" or report.case.options.get("layout", "channels_first") == "channels_first" else -1
    figure = Figure(figsize=(15, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    plane, ratio = (plane_of(array, report.worst_index, channel_axis) for array in (each.observed, each.ratio))
    shown = left.imshow(plane.astype(np.float64), cmap="gray", aspect="auto")
    figure.colorbar(shown, ax=left)
    left.set_title(f"observed {name}, where the worst element is")
    scale = LogNorm(vmin=1e-2, vmax=max(10.0, float(np.max(ratio[np.isfinite(ratio)], initial=10.0))))
    shown = middle.imshow(np.clip(ratio, 1e-2, None), norm=scale, cmap="magma", aspect="auto")
    figure.colorbar(shown, ax=middle)
    middle.set_title("error / bound (above 1 is wrong)")
    bad = np.moveaxis(each.bad, channel_axis if each.bad.ndim > 1 else 0, 0).reshape(each.bad.shape[channel_axis], -1)
    right.bar(np.arange(bad.shape[0]), 100 * bad.mean(axis=1))
    right.set(title="bad elements by channel", xlabel="channel", ylabel="% bad")
    verdict = "right" if report.ok else f"WRONG: {report.diagnoses[0].name if report.diagnoses else 'unexplained'}"
    figure.suptitle(f"{report.case.name or report.case.op}: {verdict}")
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise OptionError(f"--plot {path}: {error}; needed a file that can be written") from error


def plane_of(array: Array, index: tuple[int, ...], channel_axis: int) -> Array:
    """Two axes of an array through ``index``: the last two spatial ones, or what there is, as rows and columns."""
    axes = [axis for axis in range(array.ndim) if axis not in (0, channel_axis % array.ndim)][-2:]
    if len(axes) < 2:
        return array.reshape(array.shape[0], -1) if array.ndim > 1 else array[None, :]
    place = tuple(slice(None) if axis in axes else index[axis] for axis in range(array.ndim))
    plane: Array = array[place]
    return plane
