"""Drawing room of the demo: which pixels of a photograph move the winning score. Needs the extra ``demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from npdwconv.depthwise import depthwise_conv2d

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "saliency"]

Array = npt.NDArray[np.float32]
Named = Sequence[tuple[str, float]]

INK, FAINT, BAR, WINNER = "#1d2733", "#66727f", "#c3ccd5", "#e4572e"
PERCENTILE = 99.5  # A few pixels have gradients far above the rest; they would leave everything else black.
SIGMA = 2.0


def saliency(gradient: npt.NDArray[Any]) -> Array:
    """How much each pixel moves the score, in [0, 1]: max over channels of the absolute gradient, smoothed and clipped.

    K. Simonyan, A. Vedaldi, A. Zisserman, "Deep Inside Convolutional Networks", arXiv:1312.6034, section 3.1.

    Args:
        gradient: (C, H, W), the gradient of a class score in the pixels.

    Returns:
        (H, W), float32.

    >>> gradient = np.zeros((3, 9, 9), np.float32)
    >>> gradient[1, 4, 4] = -2.0
    >>> seen = saliency(gradient)
    >>> seen.shape, float(seen[4, 4]), float(seen[0, 0]) < 0.1
    ((9, 9), 1.0, True)
    """
    strength = np.abs(gradient).max(axis=0).astype(np.float32)
    smooth = depthwise_conv2d(strength[None, None], gaussian(SIGMA)[None, None], padding="same")[0, 0]
    top = float(np.percentile(smooth, PERCENTILE)) or 1.0
    seen: Array = np.clip(smooth / top, 0.0, 1.0)
    return seen


def gaussian(sigma: float) -> Array:
    """A normalised Gaussian window, (S, S), three standard deviations to either side."""
    reach = int(np.ceil(3 * sigma))
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    window: Array = (np.outer(line, line) / line.sum() ** 2).astype(np.float32)
    return window


def draw(path: Path, photograph: npt.NDArray[np.uint8], seen: Array, classes: Named, caption: str) -> None:
    """Write a PNG: the photograph, its saliency, both overlaid, and the most probable classes.

    Args:
        path: the file to write.
        photograph: (H, W, 3), the square that the network saw.
        seen: `saliency` of it, at any resolution.
        classes: names and probabilities, the winner first.
        caption: the line below the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.2, 4.7), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        1, 4, width_ratios=[1, 1, 1, 0.62], left=0.015, right=0.985, top=0.8, bottom=0.08, wspace=0.06
    )
    panels = [figure.add_subplot(grid[0, column]) for column in range(4)]
    _heading(figure, classes[0], caption)
    _panel(panels[0], "photograph", photograph)
    _panel(panels[1], "|∂ score / ∂ pixel|", seen, cmap="inferno")
    _panel(panels[2], "the pixels that move the score", _overlay(photograph, seen))
    _bars(panels[3], classes)
    figure.savefig(path, format="png")


def _heading(figure: Figure, winner: tuple[str, float], caption: str) -> None:
    name, probability = winner
    figure.text(0.016, 0.955, f"{name}, {probability:.0%}", fontsize=19, weight="bold", color=INK, va="top")
    figure.text(0.984, 0.94, caption, fontsize=10, color=FAINT, va="top", ha="right")


def _panel(axes: Axes, title: str, image: npt.NDArray[Any], cmap: str | None = None) -> None:
    axes.imshow(image, cmap=cmap, interpolation="bicubic", extent=(0, 1, 0, 1))
    axes.set_axis_off()
    axes.set_title(title, fontsize=10.5, color=FAINT, loc="left", pad=6)


def _overlay(photograph: npt.NDArray[np.uint8], seen: Array) -> npt.NDArray[np.float64]:
    """The photograph in dim grey, glowing where it moves the score."""
    from matplotlib import colormaps

    colour = photograph / 255.0
    glow = _resize(seen, photograph.shape[:2])[..., None]
    grey = 0.62 * (colour @ np.array([0.299, 0.587, 0.114]))[..., None]
    lit = 0.3 * colour + 0.7 * colormaps["inferno"](0.45 + 0.5 * glow[..., 0])[..., :3]
    mixed: npt.NDArray[np.float64] = np.clip((1 - glow) * grey + glow * lit, 0.0, 1.0)
    return mixed


def _resize(image: Array, shape: tuple[int, ...]) -> Array:
    from PIL import Image

    height, width = shape
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(resized, np.float32), 0.0, 1.0)


def _bars(axes: Axes, classes: Named) -> None:
    width = 1.3 * max(classes[0][1], 0.2)
    axes.set_title("most probable classes", fontsize=10.5, color=FAINT, loc="left", pad=6)
    for row, (name, probability) in enumerate(classes):
        axes.barh(row, probability, height=0.32, color=BAR if row else WINNER, align="edge")
        axes.text(0, row - 0.08, _short(name), fontsize=10, color=INK, va="bottom")
        axes.text(probability + 0.02 * width, row + 0.16, f"{probability:.1%}", fontsize=9, color=FAINT, va="center")
    axes.set(xlim=(0, width), ylim=(max(len(classes), 5) - 0.4, -0.55))
    axes.set_axis_off()


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
