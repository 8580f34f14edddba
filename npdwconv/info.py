"""Asking room: what this machine offers, in versions, backends, threads and vector width. Changes nothing."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from npdwconv.dispatch import backend_status
from npdwconv.threads import get_num_threads

__all__ = ["collect", "rows"]

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
        "cpu": cpu(),
        "cache_folders": cache_folders(),
    }


def rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report as lines of a table: what, and what was found."""
    host = report["cpu"]
    return [
        *((name, version or "not installed") for name, version in report["versions"].items()),
        ("platform", report["platform"]),
        *((f"backend {name}", state["reason"] or "available") for name, state in report["backends"].items()),
        ("threads", str(report["threads"])),
        ("CPU", host["name"]),
        ("SIMD width", f"{host['simd_bits']} bits" if host["simd_bits"] else "unknown (llvmlite cannot be imported)"),
        ("compiled kernels", ", else ".join(report["cache_folders"]) or "none (numba cannot be imported)"),
    ]


def versions() -> dict[str, str | None]:
    """Versions by their packages' metadata: nothing is imported to learn them."""
    return {"python": platform.python_version()} | {
        name: _version(name) for name in ("npdwconv", "numpy", "numba", "llvmlite", "ml_dtypes")
    }


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


def cache_folders() -> list[str]:
    """Where compiled kernels are kept: the first of these folders that can be written."""
    store = _optional("npdwconv.kernels.cpu.store")
    return [] if store is None else list(store.places())


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
