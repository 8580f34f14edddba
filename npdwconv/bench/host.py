"""What machine this is, as a report names it. Changes nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from npdwconv import info
from npdwconv.threads import usable_cores


def describe() -> dict[str, Any]:
    """The processor as it calls itself and as LLVM does, cores, memory, caches, system."""
    return {
        "cpu": _model() or platform.processor() or platform.machine(),
        "llvm_cpu": info.cpu()["name"],
        "simd_bits": info.cpu()["simd_bits"],
        "cores": usable_cores(),
        "memory_gib": _memory(),
        "last_level_cache_mib": _cache(),
        "platform": platform.platform(),
    }


def sentence(host: dict[str, Any]) -> str:
    """The machine in one line."""
    parts = [f"{host['cpu']} ({host['llvm_cpu']}, {host['simd_bits']}-bit SIMD)", f"{host['cores']} cores"]
    parts += [f"{host['memory_gib']} GiB"] if host["memory_gib"] else []
    parts += [f"last-level cache {host['last_level_cache_mib']} MiB"] if host["last_level_cache_mib"] else []
    return ", ".join([*parts, host["platform"]])


def _model() -> str | None:
    return _field(Path("/proc/cpuinfo"), "model name")


def _memory() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):
        return None


def _cache() -> int | None:
    """MiB of the largest cache of the first core."""
    found = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        found.append(int(text[:-1]) * {"K": 1, "M": 1024}.get(text[-1], 0))
    return max(found) // 1024 if found else None


def _field(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
