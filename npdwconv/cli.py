"""Command line: ``npdwconv demo | verify | warmup | bench | cost | info``. Parses, calls, prints; rooms below work.

Exit codes: 0 success, 1 a check that failed, 2 a wrong call; 130 interrupted, 141 when the output's reader is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from npdwconv import demo, info
from npdwconv.bench import device, device_report, plot, report, run
from npdwconv.bench.families import FAMILIES
from npdwconv.bench.measure import PEERS, Settings
from npdwconv.console import count, table
from npdwconv.cost import KINDS, Cost, cost
from npdwconv.dispatch import BACKENDS, require_usable
from npdwconv.errors import BackendUnavailableError, DTypeError, OptionError, ShapeError
from npdwconv.layouts import LAYOUTS
from npdwconv.options import integer
from npdwconv.precision import ACCUMULATORS
from npdwconv.threads import usable_cores
from npdwconv.verify import files
from npdwconv.verify import plot as error_map
from npdwconv.verify.bounds import PRECISIONS
from npdwconv.verify.check import NORMS
from npdwconv.warmup import reporting, warmup

__all__ = ["main"]

SUCCESS, FAILED, WRONG_CALL, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; argparse itself exits with 0 after help and 2 after a wrong call."""
    try:
        try:
            return _run(argv)
        finally:
            print(end="", flush=True)  # Nothing where there is no standard output at all.
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


def _run(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except (BackendUnavailableError, DTypeError, OptionError, ShapeError, demo.MissingExtraError) as error:
        print(f"npdwconv {args.command}: {error}", file=sys.stderr)
        return WRONG_CALL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="npdwconv", description="Depthwise, pointwise and depthwise separable convolutions for NumPy arrays."
    )
    version = info.versions()["npdwconv"] or "(not installed)"
    parser.add_argument("--version", action="version", version=f"npdwconv {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_verify(commands)
    _add_warmup(commands)
    _add_bench(commands)
    _add_cost(commands)
    _add_info(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=run)
    return parser


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", _demo, "a photograph through a pretrained network, forward and backward")
    parser.add_argument("--image", metavar="PATH", help="a photograph of your own (default: scikit-image's cat)")
    parser.add_argument(
        "--output", metavar="PATH", default=demo.OUTPUT, help="the picture to write (default: %(default)s)"
    )
    parser.add_argument("--top", metavar="N", type=int, default=5, help="classes to name (default: %(default)s)")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[1], help="(default: %(default)s)")
    parser.add_argument(
        "--no-compare", dest="compare", action="store_false", help="do not time the frameworks that are installed"
    )


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", _verify, "whether a framework's outputs are right, and if not, what they are")
    parser.add_argument("file", nargs="+", help="a saved case (.npz), or a model (.onnx), run by onnxruntime")
    parser.add_argument(
        "--input",
        metavar="[NAME=]FILE",
        action="append",
        default=[],
        help="an input of the model, saved by numpy.save (default: random numbers); repeatable",
    )
    parser.add_argument(
        "--compute",
        choices=PRECISIONS,
        action="append",
        help="the arithmetic that was used; repeatable where any of several will do (default: the operands' own)",
    )
    parser.add_argument(
        "--norm", choices=NORMS, default=NORMS[0], help="max: for Winograd and FFT (default: %(default)s)"
    )
    parser.add_argument("--save", metavar="FILE", help="write the case, or of several the failing ones, as .npz")
    parser.add_argument("--plot", metavar="FILE", help="draw the errors of the worst layer to this PNG file")


def _add_warmup(commands: Any) -> None:
    parser = _command(commands, "warmup", _warmup, "compile ahead what named calls need, into the cache on disk")
    parser.add_argument(
        "call", nargs="+", help="efficientnet-lite0, or kind:shape:part:part…, such as depthwise:1x32x112x112:k3:s2"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=ACCUMULATORS, default="float32", help="(default: %(default)s)")
    parser.add_argument("--backward", action="store_true", help="compile their backward too")


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", _bench, "published shapes beside the frameworks that are installed")
    parser.add_argument("--family", choices=FAMILIES, action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--peer", choices=PEERS, action="append", help="only beside this one; repeatable")
    parser.add_argument(
        "--match", metavar="TEXT", default="", help="only cases with TEXT in their names: n1-c32-112x112"
    )
    parser.add_argument("--quick", action="store_true", help="a few cases a family, fewer and shorter rounds")
    parser.add_argument("--rounds", metavar="N", type=int, help="turns that everyone has (default: 7; quick: 3)")
    parser.add_argument("--threads", metavar="N", type=int, help="of every participant (default: the cores)")
    parser.add_argument("--backend", choices=BACKENDS, help="of ours (default: what a call takes)")
    parser.add_argument("--no-compile-times", dest="compile_times", action="store_false")
    parser.add_argument("--plot", metavar="FILE", help="draw roofline and ratios to this PNG file")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables to this page, between its markers")


def _add_cost(commands: Any) -> None:
    parser = _command(commands, "cost", _cost, "parameters, multiply-adds and bytes of one convolution of one image")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--in-channels", metavar="C", type=int, required=True)
    parser.add_argument("--out-channels", metavar="K", type=int, help="left out for a depthwise convolution")
    parser.add_argument("--kernel", metavar="RxS", type=extent, required=True, help="3, or one extent an axis: 3x3")
    parser.add_argument("--input", metavar="HxW", type=extents, required=True, help="one to three axes: 16000, 112x112")
    parser.add_argument("--stride", metavar="S", type=extent, default=1)
    parser.add_argument("--dilation", metavar="D", type=extent, default=1)
    parser.add_argument(
        "--padding",
        metavar="P",
        type=padding,
        default=0,
        help="1, 1x2, low:high as in 0:1x0:1, or a name: same, valid, causal",
    )
    parser.add_argument("--depth-multiplier", metavar="M", type=int, default=1)
    parser.add_argument("--no-bias", dest="bias", action="store_false")
    parser.add_argument(
        "--itemsize", metavar="BYTES", type=int, default=4, help="bytes an element (default: float32, 4)"
    )


def _add_info(commands: Any) -> None:
    _command(commands, "info", _info, "versions, backends and why each is available or not, threads, vector width")


def _demo(args: argparse.Namespace) -> int:
    with reporting(_tell):
        result = _demonstrated(args)
    print(_json(result.as_dict()) if args.json else demo.describe(result))
    return SUCCESS


def _demonstrated(args: argparse.Namespace) -> demo.Demo:
    return demo.run(
        image=args.image,
        output=args.output,
        layout=args.layout,
        top=args.top,
        compare=args.compare,
        progress=demo.silent if args.json else None,
    )


def _verify(args: argparse.Namespace) -> int:
    if args.plot is not None:
        error_map.check(args.plot)
    given = files.inputs_named(args.input)
    found = files.verify(args.file, inputs=given, compute=args.compute, norm=args.norm, tell=_tell)
    print(_json(found.as_dict()) if args.json else files.describe(found))
    if args.save is not None:
        files.save(found, args.save)
    worst = files.worst(found)
    if args.plot is not None and worst is not None:
        error_map.draw(worst, args.plot)
    return SUCCESS if found.ok and found.reports else FAILED


def _warmup(args: argparse.Namespace) -> int:
    with reporting(_tell):
        warmed = warmup(*args.call, layout=args.layout, dtype=args.dtype, backward=args.backward)
    rows = [[each.call, str(each.compiled), f"{each.seconds:.2f} s"] for each in warmed]
    found = {"calls": [each._asdict() for each in warmed]}
    print(_json(found) if args.json else table("compiled ahead", ["call", ">kernels compiled", ">time"], rows))
    return SUCCESS


def _bench(args: argparse.Namespace) -> int:
    if args.backend is not None:
        require_usable(args.backend)
    if args.plot is not None:
        error_map.check(args.plot)
    if args.markdown is not None:
        report.check(args.markdown)
    if args.backend == "cuda":
        return _bench_device(args)
    chosen = run.choose(args.family, args.match, args.quick)
    settings = _bench_settings(args)
    found = run.run(
        chosen,
        settings,
        families=args.family,
        peers=args.peer,
        compile_times=args.compile_times,
        own=not (args.family or args.peer or args.match),
        tell=_tell,
    )
    _tell("")
    print(_json(found.as_dict()) if args.json else report.describe(found))
    if args.plot is not None:
        plot.draw(found, args.plot)
    if args.markdown is not None:
        report.write(report.markdown(found), args.markdown)
    return FAILED if found.wrong else SUCCESS


def _bench_device(args: argparse.Namespace) -> int:
    """The GPU's own benchmark: ours and PyTorch share the device, and so one process."""
    for option in ("family", "peer", "threads", "plot"):
        if getattr(args, option):
            raise OptionError(f"--{option} does not apply with --backend cuda; needed --match, --quick, --rounds")
    rounds = integer("rounds", (3 if args.quick else 7) if args.rounds is None else args.rounds, least=1)
    cases = device.shapes(args.match, args.quick)
    found = device.run(cases, rounds, not args.match, _tell)
    _tell("")
    print(_json(found.as_dict()) if args.json else device_report.describe(found))
    if args.markdown is not None:
        report.write(device_report.markdown(found), args.markdown)
    return FAILED if found.wrong else SUCCESS


def _bench_settings(args: argparse.Namespace) -> Settings:
    rounds = 3 if args.quick else 7
    return Settings(
        threads=integer("threads", usable_cores() if args.threads is None else args.threads, least=1),
        rounds=integer("rounds", rounds if args.rounds is None else args.rounds, least=1),
        seconds=0.02 if args.quick else 0.05,
        warm=0.01 if args.quick else 0.02,
        backend=args.backend,
    )


def _tell(text: str) -> None:
    """One line of progress on a terminal's standard error, each in the place of the one before."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)


def _cost(args: argparse.Namespace) -> int:
    options: dict[str, Any] = {
        name: getattr(args, name) for name in ("stride", "padding", "dilation", "bias", "itemsize")
    }
    channels = args.in_channels, args.out_channels
    asked = cost(args.kind, *channels, args.kernel, args.input, depth_multiplier=args.depth_multiplier, **options)
    standard = cost("standard", args.in_channels, asked.out_channels, args.kernel, args.input, **options)
    print(_json(_cost_dict(asked, standard)) if args.json else _cost_table(asked, standard))
    return SUCCESS


def _info(args: argparse.Namespace) -> int:
    report = info.collect()
    print(_json(report) if args.json else table("npdwconv", ["what", "found"], info.rows(report)))
    return SUCCESS


def _cost_dict(asked: Cost, standard: Cost) -> dict[str, Any]:
    full = [
        asdict(each) | {"bytes": each.bytes, "arithmetic_intensity": each.arithmetic_intensity}
        for each in (asked, standard)
    ]
    return {**full[0], "standard": full[1], "share_of_standard": _shares(asked, standard)}


def _cost_table(asked: Cost, standard: Cost) -> str:
    shown = [asked] if asked.kind == "standard" else [asked, standard]
    columns = ["kind", ">output", ">parameters", ">multiply-adds", ">bytes read", ">written", "?>FLOPs/byte"]
    shares = _shares(asked, standard)
    ratio = ["share of standard", "", *(_percent(shares[name]) for name in shares), ""]
    return table(
        "one convolution of one image", columns, [_cost_row(each) for each in shown], totals=[ratio][: len(shown) - 1]
    )


def _cost_row(each: Cost) -> list[str]:
    extents = "x".join(map(str, (each.out_channels, *each.output_size)))
    amounts = (each.parameters, each.multiply_adds, each.bytes_read, each.bytes_written)
    return [each.kind, extents, *map(count, amounts), f"{each.arithmetic_intensity:.1f}"]


def _shares(asked: Cost, standard: Cost) -> dict[str, float | None]:
    names = ("parameters", "multiply_adds", "bytes_read", "bytes_written")
    pairs = {name: (getattr(asked, name), getattr(standard, name)) for name in names}
    return {name: part / whole if whole else None for name, (part, whole) in pairs.items()}


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def extents(text: str) -> tuple[int, ...]:
    """``112x112`` -> (112, 112)."""
    return tuple(int(part) for part in text.split("x"))


def extent(text: str) -> int | tuple[int, ...]:
    """``3`` -> 3, for every axis; ``3x5`` -> (3, 5)."""
    numbers = extents(text)
    return numbers[0] if len(numbers) == 1 else numbers


def padding(text: str) -> int | str | tuple[int | tuple[int, ...], ...]:
    """``1`` -> 1, ``1x2`` -> (1, 2), ``0:1x2`` -> ((0, 1), 2); a word is a name, which `cost` checks."""
    if not any(map(str.isdigit, text)):
        return text
    if ":" not in text:
        return extent(text)
    return tuple(tuple(map(int, part.split(":"))) if ":" in part else int(part) for part in text.split("x"))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)
