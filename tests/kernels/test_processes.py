"""Threads and forks: launches give the right result, and the process lives."""

from __future__ import annotations

import sys

import pytest
from kernels.children import run

# threads


def test_eight_threads_at_once():
    code = """
        import threading
        import affine, npdwconv
        npdwconv.set_num_threads(4)
        gate, found = threading.Barrier(8), []
        kinds = [dict(items=16, work=10**9), dict(items=3, work=10)] * 50
        def work():
            gate.wait()
            found.extend(affine.right(**kind) for kind in kinds)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(all(found), len(found))
    """
    assert run(code) == "True 800"


def test_threads_that_come_and_go():
    code = """
        from concurrent.futures import ThreadPoolExecutor
        import affine
        for _ in range(20):
            with ThreadPoolExecutor(3) as pool:
                assert all(pool.map(lambda _: affine.right(), range(6)))
    """
    run(code)


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_beside_parallel_code_of_numba(layer: str):
    code = """
        import threading
        import numba, npdwconv
        import affine
        numba.set_num_threads(1)
        npdwconv.set_num_threads(2)
        @numba.njit(parallel=True)
        def total(n):
            t = 0
            for i in numba.prange(n):
                t += i
            return t
        found = []
        def work():
            found.extend(affine.right() for _ in range(200))
        thread = threading.Thread(target=work)
        thread.start()
        assert all(total(100) == 4950 for _ in range(50))
        thread.join()
        assert all(found)
        assert numba.get_num_threads() == 1 and npdwconv.get_num_threads() == 2
    """
    run(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS=2)


def test_more_threads_than_cores_and_than_items():
    code = """
        import npdwconv
        import affine
        for count in (7, 64, 2, 1):
            npdwconv.set_num_threads(count)
            assert all(affine.right(items=items, vectors=3) for items in (1, 2, 5, 7, 64, 1000) for _ in range(20))
    """
    run(code)


def test_more_items_than_a_ticket_counts():
    code = """
        import affine
        from npdwconv.kernels.cpu import pool
        assert affine.right(items=2 * pool.MASK + 3, vectors=1)
    """
    run(code)


ABSENT = {
    "never get a core": "threading.Event().wait()",
    "come late": "time.sleep(0.3); kept(self)",
    "are gone": "return",
}


@pytest.mark.parametrize("helpers", ABSENT)
def test_launches_end_although_helpers(helpers: str):
    code = f"""
        import threading, time
        import affine, npdwconv
        from npdwconv.kernels.cpu import pool
        kept = pool._Helper.run
        def run(self):
            {ABSENT[helpers]}
        pool._Helper.run = run
        pool.FAREWELL = 0.1
        npdwconv.set_num_threads(3)
        began = time.perf_counter()
        assert all(affine.right() for _ in range(20))
        assert time.perf_counter() - began < 20
    """
    run(code)


def test_no_thread_can_be_started():
    code = """
        import threading
        import affine, npdwconv
        def start(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = start
        npdwconv.set_num_threads(3)
        assert affine.right() and affine.right()
    """
    run(code)


def test_a_launch_inside_another_is_serial():
    code = """
        import affine
        from npdwconv.kernels.cpu import pool
        assert affine.right()
        with pool._pool.free:
            assert affine.right()
        assert affine.right()
    """
    run(code)


@pytest.mark.skipif(sys.platform == "win32", reason="no interval timer")
def test_signals_do_not_free_what_helpers_use():
    code = """
        import gc, signal, time
        import numpy as np
        import affine, npdwconv
        npdwconv.set_num_threads(3)
        assert affine.right(items=64, vectors=200)
        class Stop(BaseException): pass
        def stop(*_): raise Stop
        signal.signal(signal.SIGALRM, stop)
        stopped, ends = 0, time.monotonic() + 3
        while time.monotonic() < ends:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 * (1 + stopped % 10))
                for _ in range(20):
                    assert affine.right(items=64, vectors=200)
            except Stop:
                stopped += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        assert stopped > 10 and affine.right()
    """
    run(code)


def test_the_interpreter_ends_while_helpers_work():
    code = """
        import atexit, threading
        import affine, npdwconv
        npdwconv.set_num_threads(4)
        atexit.register(lambda: print(affine.right()))
        def forever():
            while True:
                affine.right()
        for _ in range(2):
            threading.Thread(target=forever, daemon=True).start()
        assert all(affine.right() for _ in range(50))
    """
    for _ in range(5):
        assert run(code) == "True"


# processes


def test_a_child_forked_after_threads_ran():
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
    run(code, PYTHONWARNINGS="ignore")  # later Pythons warn of forks of many threads


def test_a_child_has_helpers_of_its_own():
    code = """
        import os, threading
        import affine, npdwconv
        npdwconv.set_num_threads(3)
        assert affine.right() and threading.active_count() == 3
        child = os.fork()
        if not child:
            assert threading.active_count() == 1
            os._exit(0 if affine.right() and threading.active_count() == 3 else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    run(code, PYTHONWARNINGS="ignore")


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
    run(code, NUMBA_CACHE_DIR="/dev/null", PYTHONWARNINGS="ignore")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_processes(method: str):
    code = f"""
        import multiprocessing
        import affine
        if __name__ == "__main__":
            assert affine.right()
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                assert all(pool.starmap(affine.right, [(2,), (3,)] * 4))
    """
    run(code, PYTHONWARNINGS="ignore")


def test_without_a_compiler_the_backend_says_so():
    code = """
        import npdwconv
        import npdwconv.kernels.cpu.engine
        print(npdwconv.backend_status()["numba"])
    """
    assert "NUMBA_DISABLE_JIT" in run(code, NUMBA_DISABLE_JIT=1)


def test_a_numba_that_is_too_old_is_not_used():
    code = """
        import importlib.metadata
        known = importlib.metadata.version
        importlib.metadata.version = lambda name: "0.61.2" if name == "numba" else known(name)
        import numpy as np, npdwconv
        print(npdwconv.backend_status()["numba"])
        print(npdwconv.depthwise_conv1d(np.ones((1, 1, 3), np.float32), np.ones((1, 1, 2), np.float32)).tolist())
        print(npdwconv.explain_backend().backend)
    """
    reason, result, backend = run(code, NPDWCONV_BACKEND="").splitlines()
    assert "numba 0.61.2 is too old" in reason
    assert "numba>=0.62" in reason
    assert (result, backend) == ("[[[2.0, 2.0]]]", "reference")
