"""Python processes for tests of what can end a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import npdwconv
from npdwconv.kernels.cpu.machine import LANES_VARIABLE

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


def narrower(file: str, chosen: str, lanes: int) -> None:
    """Run the tests of a file that are ``chosen``, as `pytest -k` takes it, with this many float32 lanes."""
    options = ["-q", "-x", "-m", "not sweep", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file, "-k", chosen],
        env={**os.environ, LANES_VARIABLE: str(lanes)},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
