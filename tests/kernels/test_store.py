"""Compiled kernels on disk: kept, shared, spoilt, out of date, or with no place to be kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from kernels.children import PACKAGE, finish, run, start

TELL = "import affine; print(affine.right(), affine.right(factor=3), len(affine.compiled))"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache filled with two specs' code."""
    folder = tmp_path_factory.mktemp("cache")
    assert run(TELL, NUMBA_CACHE_DIR=folder) == "True True 2"
    return folder


@pytest.fixture
def filled(cache: Path, tmp_path: Path) -> dict[Path, bytes]:
    """The files of a copy of that cache, and what they hold."""
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    files = {path: path.read_bytes() for path in code_in(tmp_path)}
    assert len(files) == 2
    return files


def code_in(folder: Path) -> list[Path]:
    """The files of the kernel that is called, finished or not."""
    return list(folder.rglob("affine.affine-*"))


def test_code_is_kept(filled, tmp_path: Path):
    code = f"""
        import sys
        {TELL}
        print("numba.np.arraymath" in sys.modules)
    """
    assert run(code, NUMBA_CACHE_DIR=tmp_path) == "True True 0\nFalse", "it sets up Numba's compiler"


def test_other_code_is_compiled_as_ever(tmp_path: Path):
    code = f"""
        import numba
        other = numba.njit(lambda x: x + 1)
        other(1)
        from npdwconv.kernels.cpu import compilation, pipeline
        libraries = []
        compilation._calls = lambda library: libraries.append(type(library)) or ()
        {TELL}
        other(1.5)
        kinds = {{type(code.library) for code in other.overloads.values()}}
        print(kinds == {{pipeline.JITCodeLibrary}}, set(libraries) == {{pipeline._Library}})
    """
    assert run(code, NUMBA_CACHE_DIR=tmp_path) == "True True 2\nTrue True"


def test_two_processes_that_fill_one_empty_cache(tmp_path: Path):
    started = [start(TELL, NUMBA_CACHE_DIR=tmp_path) for _ in range(4)]
    assert {finish(process)[:9] for process in started} == {"True True"}
    assert len(code_in(tmp_path)) == 2
    assert run(TELL, NUMBA_CACHE_DIR=tmp_path) == "True True 0"


SPOILT = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-100],
    "a header alone": lambda content: content.partition(b"\n")[0],
    "a bit flipped in the code": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
    "no header": lambda content: b"\xff" * 1000,
    "JSON of another kind": lambda content: b"[1, 2]\n" + content,
}


@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_files_are_compiled_anew(filled, tmp_path: Path, kind):
    for path, content in filled.items():
        path.write_bytes(SPOILT[kind](content))
    assert run(TELL, NUMBA_CACHE_DIR=tmp_path) == "True True 2"
    assert run(TELL, NUMBA_CACHE_DIR=tmp_path) == "True True 0"


def test_code_of_another_spec_is_not_run(filled, tmp_path: Path):
    (one, first), (other, second) = filled.items()
    one.write_bytes(second)
    other.write_bytes(first)
    assert run(TELL, NUMBA_CACHE_DIR=tmp_path) == "True True 2"


def test_code_that_calls_what_is_not_there_is_not_loaded(filled, tmp_path: Path):
    for path, content in filled.items():
        header, _, machine = content.partition(b"\n")
        changed = json.loads(header) | {"calls": ["no_such_function"]}
        path.write_bytes(json.dumps(changed).encode() + b"\n" + machine)
    assert run(TELL, NUMBA_CACHE_DIR=tmp_path) == "True True 2"


def test_a_folder_in_place_of_a_file(filled, tmp_path: Path):
    for path in filled:
        path.unlink()
        (path / "inside").mkdir(parents=True)
    assert run(TELL, NUMBA_CACHE_DIR=tmp_path) == "True True 2"


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/dev/null", "/proc/nothing"):
        assert run(TELL, NUMBA_CACHE_DIR=place) == "True True 2"


def test_a_cache_that_fails_when_written(tmp_path: Path):
    full = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        {TELL}
    """
    assert run(full, NUMBA_CACHE_DIR=tmp_path) == "True True 2"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "a draft was left"
    assert run(TELL, NUMBA_CACHE_DIR=tmp_path) == "True True 2"
    assert run(full, NUMBA_CACHE_DIR=tmp_path) == "True True 0", "what is there can still be read"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The folder of a copy of the package."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "lib" / PACKAGE.name, ignore=ignored)
    return tmp_path / "lib"


def test_a_package_folder_that_cannot_be_written(copied: Path, tmp_path: Path):
    options = {"root": copied, "NUMBA_CACHE_DIR": None, "PYTHONDONTWRITEBYTECODE": 1}
    (copied / PACKAGE.name / "kernels" / "cpu" / "__pycache__").write_text("not a folder, whoever asks")
    assert run(TELL, HOME="/dev/null", XDG_CACHE_HOME=None, **options) == "True True 2"
    home = {"HOME": tmp_path / "home", "XDG_CACHE_HOME": None}
    assert run(TELL, **home, **options) == "True True 2"
    assert run(TELL, **home, **options) == "True True 0"
    assert len(code_in(tmp_path / "home" / ".cache" / "npdwconv")) == 2


def test_changed_sources_are_compiled_anew(copied: Path, tmp_path: Path):
    options = {"root": copied, "NUMBA_CACHE_DIR": tmp_path / "cache"}
    assert run(TELL, **options) == "True True 2"
    assert run(TELL, **options) == "True True 0"
    source = copied / PACKAGE.name / "kernels" / "cpu" / "simd.py"
    source.write_text(source.read_text().replace('f"llvm.fma.', 'f"llvm.fmuladd.'))
    assert run(TELL, **options) == "True True 2"
    assert run(TELL, **options) == "True True 0"


def test_code_of_old_sources_is_thrown_away(copied: Path, tmp_path: Path):
    options = {"root": copied, "NUMBA_CACHE_DIR": tmp_path / "cache"}
    source = copied / PACKAGE.name / "kernels" / "cpu" / "__init__.py"
    save = """
        from npdwconv.kernels.cpu import spec, store
        store.save("kernel", spec.sources(), "key", store.Code("", (), b""))
    """
    for version in range(10):
        source.write_text(f'"""Version {version}."""\n')
        run(save, **options)
    assert 1 <= len(list((tmp_path / "cache" / "npdwconv").iterdir())) <= 9
