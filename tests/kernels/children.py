"""Python processes for tests of what can end a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import npdwconv

HERE = Path(__file__).parent
PACKAGE = Path(npdwconv.__file__).parent


def start(code: str, *, root: Path = PACKAGE.parent, **variables: Any) -> subprocess.Popen[str]:
    """Start a process that runs ``code`` with these environment variables; None takes one away."""
    path = os.pathsep.join(map(str, (root, HERE, HERE.parent)))
    changed = {"PYTHONPATH": path, "PYTHONWARNINGS": "error"} | variables
    environment = {name: value for name, value in (os.environ | changed).items() if value is not None}
    return subprocess.Popen(
        [sys.executable, "-c", dedent(code)],
        cwd=root,
        env={name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """What the process printed; it must end well, in time, and say nothing else."""
    with process:
        try:
            out, errors = process.communicate(timeout=seconds)
        finally:
            process.kill()
    assert process.returncode == 0, f"ended with {process.returncode} after {out[-200:]!r}: {errors}"
    assert errors == "", errors
    return out.strip()


def run(code: str, *, seconds: float = 300, **options: Any) -> str:
    """What a process that runs ``code`` prints."""
    return finish(start(code, **options), seconds)
