"""Threads, forks and caches that fail: launches give the right result, and the process lives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from kernels.children import PACKAGE, finish, run, start

LAYERS = ("omp", "workqueue", "tbb")

every_layer = pytest.mark.parametrize("layer", LAYERS)


@pytest.fixture(scope="module")
def threads():
    """The environment for a threading layer, where that layer can be loaded."""

    def chosen(layer: str) -> dict[str, str]:
        found = run(
            """
            from numba import get_num_threads, threading_layer
            try:
                get_num_threads()
                print(threading_layer())
            except ValueError:
                print("")
            """,
            NUMBA_THREADING_LAYER=layer,
            PYTHONWARNINGS="ignore",
        )
        if found != layer:
            pytest.skip(f"the {layer} layer is not installed")
        return {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4"}

    return chosen


# threads


@every_layer
def test_eight_threads_at_once(layer, threads):
    code = """
        import threading
        import numba
        import affine, npdwconv
        npdwconv.set_num_threads(4)
        affine.right()
        before = numba.get_num_threads()
        gate, found = threading.Barrier(8), []
        kinds = [dict(items=16, work=10**9), dict(items=3, work=10)] * 50
        def work():
            gate.wait()
            found.extend(affine.right(**kind) for kind in kinds)
            found.append(numba.get_num_threads() == before)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(all(found), len(found))
    """
    assert run(code, **threads(layer)) == f"True {8 * 101}"


@every_layer
def test_threads_that_come_and_go(layer, threads):
    code = """
        from concurrent.futures import ThreadPoolExecutor
        import affine
        for _ in range(20):
            with ThreadPoolExecutor(3) as pool:
                assert all(pool.map(lambda _: affine.right(), range(6)))
    """
    run(code, **threads(layer))


@every_layer
def test_nothing_global_is_left_changed(layer, threads):
    code = """
        import numba, npdwconv
        import affine
        numba.set_num_threads(3)
        npdwconv.set_num_threads(2)
        assert affine.right()
        assert numba.get_num_threads() == 3, numba.get_num_threads()
        @numba.njit(parallel=True)
        def total(n):
            t = 0
            for i in numba.prange(n):
                t += i
            return t
        assert total(100) == 4950 and affine.right() and total(100) == 4950
        assert numba.get_num_threads() == 3 and npdwconv.get_num_threads() == 2
    """
    run(code, **threads(layer))


def test_never_more_threads_than_numba_started():
    code = """
        import npdwconv
        from npdwconv.kernels.cpu.threading import threads_for
        import affine
        npdwconv.set_num_threads(100)
        assert threads_for(50, 10**9) == 3 and threads_for(2, 10**9) == 2
        assert threads_for(50, 10) == 1 and threads_for(1, 10**9) == 1
        npdwconv.set_num_threads(1)
        assert threads_for(50, 10**9) == 1
        npdwconv.set_num_threads(100)
        assert affine.right()
    """
    run(code, NUMBA_NUM_THREADS=3)


def test_a_launch_inside_another_is_serial():
    code = """
        import affine
        from npdwconv.kernels.cpu import threading
        assert threading.enter() and not threading.enter()
        assert affine.right()
        threading.leave()
        assert threading.enter()
    """
    run(code, NUMBA_THREADING_LAYER="workqueue")


# processes


@every_layer
def test_a_child_forked_after_threads_ran(layer, threads):
    code = """
        import os
        import affine
        assert affine.right()
        for _ in range(3):
            child = os.fork()
            if not child:
                grandchild = os.fork()
                if not grandchild:
                    os._exit(0 if affine.right() else 1)
                _, status = os.waitpid(grandchild, 0)
                os._exit(0 if affine.right() and affine.right(factor=5) and status == 0 else 1)
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            assert affine.right()
    """
    run(code, **threads(layer))


def test_a_child_forked_before_threads_ran():
    code = """
        import os
        import affine
        child = os.fork()
        if not child:
            os._exit(0 if affine.right() else 1)
        assert os.waitpid(child, 0)[1] == 0 and affine.right()
    """
    run(code)


def test_a_fork_while_others_launch_and_compile():
    code = """
        import os, threading, time
        import affine
        assert affine.right()
        stop = threading.Event()
        def launch():
            while not stop.is_set():
                affine.right()
        def compile():
            for factor in range(100, 110):
                affine.right(factor=factor)
        threads = [threading.Thread(target=launch), threading.Thread(target=compile)]
        for thread in threads: thread.start()
        while not affine.compiled: time.sleep(0.001)
        for factor in range(3):
            child = os.fork()
            if not child:
                os._exit(0 if affine.right(factor=200 + factor) else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads: thread.join()
    """
    run(code, NUMBA_CACHE_DIR="/dev/null", PYTHONWARNINGS="ignore")  # later Pythons warn of such forks


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes(method):
    code = f"""
        import multiprocessing
        import affine
        if __name__ == "__main__":
            assert affine.right()
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                assert all(pool.starmap(affine.right, [(2,), (3,)] * 4))
    """
    run(code)


# the cache

TELL = "import affine; print(affine.right(), affine.right(factor=3), len(affine.compiled))"


@pytest.fixture
def filled(tmp_path: Path) -> dict[Path, bytes]:
    """The files of a cache filled with two specs' code, and what they hold."""
    assert run(TELL, NUMBA_CACHE_DIR=tmp_path) == "True True 2"
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) == 2
    return files


def test_code_is_kept(filled, tmp_path: Path):
    code = f"""
        import sys
        {TELL}
        print("numba.np.arraymath" in sys.modules)
    """
    assert run(code, NUMBA_CACHE_DIR=tmp_path) == "True True 0\nFalse", "it sets up Numba's compiler"


def test_two_processes_that_fill_one_empty_cache(tmp_path: Path):
    started = [start(TELL, NUMBA_CACHE_DIR=tmp_path) for _ in range(4)]
    assert {finish(process)[:9] for process in started} == {"True True"}
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
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
    assert len(list((tmp_path / "home" / ".cache" / "npdwconv").rglob("*.code"))) == 2


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


def test_without_a_compiler_the_backend_says_so():
    code = """
        import npdwconv
        import npdwconv.kernels.cpu.engine
        print(npdwconv.backend_status()["numba"])
    """
    assert "NUMBA_DISABLE_JIT" in run(code, NUMBA_DISABLE_JIT=1)
