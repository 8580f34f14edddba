"""Asking room: what this machine offers, in versions, backends, threads and vector width. Changes nothing."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from npdwconv.dispatch import backend_status
from npdwconv.threads import get_num_threads

__all__ = ["collect", "rows"]

# Numba's module for each of its threading layers.
LAYERS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}

# Vector registers in bits, widest first, and LLVM's names for the features that bring them.
WIDTHS = ((512, ("avx512f",)), (256, ("avx2", "avx")), (128, ("sse2", "neon")))


def collect() -> dict[str, Any]:
    """Everything that ``npdwconv info`` reports, ready for JSON."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "backends": {
            name: {"available": reason is None, "reason": reason} for name, reason in backend_status().items()
        },
        "threads": get_num_threads(),
        "threading_layer": threading_layer(),
        "cpu": cpu(),
        "cache_folder": cache_folder(),
    }


def rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report as lines of a table: what, and what was found."""
    layer, host = report["threading_layer"], report["cpu"]
    return [
        *((name, version or "not installed") for name, version in report["versions"].items()),
        ("platform", report["platform"]),
        *((f"backend {name}", state["reason"] or "available") for name, state in report["backends"].items()),
        ("threads", str(report["threads"])),
        ("threading layer", _layer_text(layer)),
        ("CPU", host["name"]),
        ("SIMD width", f"{host['simd_bits']} bits" if host["simd_bits"] else "unknown (llvmlite cannot be imported)"),
        ("cache folder", report["cache_folder"] or "none (numba cannot be imported)"),
    ]


def versions() -> dict[str, str | None]:
    """Versions by their packages' metadata: nothing is imported to learn them."""
    return {"python": platform.python_version()} | {
        name: _version(name) for name in ("npdwconv", "numpy", "numba", "llvmlite", "ml_dtypes")
    }


def threading_layer() -> dict[str, Any]:
    """Numba's threading layers: which can be loaded here, and which it would choose."""
    config = _optional("numba.core.config")
    if config is None:
        return {"chosen": None, "loadable": []}
    loadable = [name for name, module in LAYERS.items() if _optional(f"numba.np.ufunc.{module}") is not None]
    order = _layer_order(str(config.THREADING_LAYER).lower(), config.THREADING_LAYER_PRIORITY)
    return {"chosen": next((name for name in order if name in loadable), None), "loadable": loadable}


def cpu() -> dict[str, Any]:
    """The CPU as LLVM names it, and the bits of its widest vector registers."""
    llvm = _optional("llvmlite.binding")
    if llvm is None:
        return {"name": platform.processor() or platform.machine(), "simd_bits": None}
    return {"name": llvm.get_host_cpu_name(), "simd_bits": simd_bits(llvm.get_host_cpu_features())}


def simd_bits(features: Mapping[str, bool]) -> int | None:
    """Bits of the widest vector register that the features bring.

    >>> simd_bits({"sse2": True, "avx2": True, "avx512f": False})
    256
    """
    return next((bits for bits, names in WIDTHS if any(features.get(name) for name in names)), None)


def cache_folder() -> str | None:
    """Where Numba keeps compiled kernels: NUMBA_CACHE_DIR, else beside them, else the user's cache."""
    config = _optional("numba.core.config")
    if config is None:
        return None
    kernels = Path(__file__).parent / "kernels" / "cpu"
    if config.CACHE_DIR:
        return str(config.CACHE_DIR)
    if os.access(kernels, os.W_OK):
        return str(kernels / "__pycache__")
    dirs = importlib.import_module("numba.misc.appdirs").AppDirs(appname="numba", appauthor=False)
    return str(dirs.user_cache_dir)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _layer_order(layer: str, priority: Sequence[str]) -> Sequence[str]:
    """The layers that a setting of NUMBA_THREADING_LAYER admits, in the order in which Numba tries them.

    Numba's user manual, "The Threading Layers": on Linux OpenMP does not survive a fork.
    """
    forksafe = ("tbb", "workqueue") if platform.system() == "Linux" else ("tbb", "omp", "workqueue")
    sets = {"default": tuple(priority), "safe": ("tbb",), "threadsafe": ("tbb", "omp"), "forksafe": forksafe}
    return sets.get(layer, (layer,))


def _layer_text(layer: Mapping[str, Any]) -> str:
    if not layer["loadable"]:
        return "none (numba cannot be imported)"
    return f"{layer['chosen'] or 'none of those admitted'} (loadable: {', '.join(layer['loadable'])})"
