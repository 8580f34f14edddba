"""Weights files that lie about storages, tensors and their own length: nothing is read or allocated beyond the file."""

from __future__ import annotations

import contextlib
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    FORMATS,
    LEGACY,
    MAGIC,
    REBUILD,
    ZIP,
    Blob,
    Format,
    Name,
    Persistent,
    op,
    pickled,
    rebuilt,
    rebuilt_v3,
    refused,
    write_legacy,
    write_zip,
)

from npdwconv.errors import CheckpointError
from npdwconv.interop.checkpoint import load

FLOAT = Name("torch", "FloatStorage")
TWO = {"0": Blob(2, struct.pack("<2f", 4, 5))}


PIDS = {
    "text": "storage",
    "empty": (),
    "other-kind": ("module", FLOAT, "0", "cpu", 2),
    "too-short": ("storage", FLOAT, "0", "cpu"),
    "too-long": ("storage", FLOAT, "0", "cpu", 2, None, None),
    "type-is-text": ("storage", "FloatStorage", "0", "cpu", 2),
    "type-is-function": ("storage", REBUILD, "0", "cpu", 2),
    "key-is-number": ("storage", FLOAT, 0, "cpu", 2),
    "key-is-list": ("storage", FLOAT, [], "cpu", 2),
    "numel-negative": ("storage", FLOAT, "0", "cpu", -1),
    "numel-float": ("storage", FLOAT, "0", "cpu", 2.0),
    "numel-true": ("storage", FLOAT, "0", "cpu", True),
    "numel-enormous": ("storage", FLOAT, "0", "cpu", 10**1000),
}


@FORMATS
@pytest.mark.parametrize("name", PIDS)
def test_persistent_ids(tmp_path: Path, form: Format, name: str) -> None:
    value = [rebuilt(Persistent(PIDS[name]), 0, (2,), (1,))]
    refused(form.write(tmp_path / "a", value, TWO), "refers to|number of elements")


@pytest.mark.parametrize("view", ["text", (), ("1", 0), ("1", -1, 1), ("1", 0, 3), ("1", 2, 1), ("1", 2**62, 2**62)])
def test_views_of_storages(tmp_path: Path, view: Any) -> None:
    value = [rebuilt(Persistent(("storage", FLOAT, "0", "cpu", 2, view)), 0, (), ())]
    refused(write_legacy(tmp_path / "a", value, TWO), "view")


def test_tensor_beyond_its_view_of_a_storage(tmp_path: Path) -> None:
    value = [rebuilt(Persistent(("storage", FLOAT, "0", "cpu", 2, ("1", 0, 1))), 0, (2,), (1,))]
    refused(write_legacy(tmp_path / "a", value, TWO), "element 1 of a storage of 1")


def test_view_inside_an_element(tmp_path: Path) -> None:
    storage = Persistent(("storage", Name("torch.storage", "UntypedStorage"), "0", "cpu", 8, ("1", 1, 4)))
    value = [rebuilt_v3(storage, (1,), (1,), "float32")]
    refused(write_legacy(tmp_path / "a", value, {"0": Blob(8, bytes(8))}), "inside a float32")


VIEWS = {
    "offset": (1, (2,), (1,)),
    "offset-far": (2**62, (1,), (1,)),
    "offset-of-scalar": (2, (), ()),
    "offset-negative": (-1, (1,), (1,)),
    "offset-true": (True, (1,), (1,)),
    "extent": (0, (3,), (1,)),
    "stride": (0, (2,), (2,)),
    "stride-negative": (1, (2,), (-1,)),
    "extent-negative": (0, (-1,), (1,)),
    "extents-negative": (0, (-2, -1), (1, 1)),
    "two-axes": (0, (2, 2), (1, 1)),
    "stride-times-extent-wraps": (0, (2**31 + 1,), (2**31,)),
    "bytes-wrap": (0, (2,), (2**62,)),
    "offset-in-bytes-wraps": (2**62, (1,), (1,)),
    "beyond-64-bits": (0, (2**64,), (0,)),
    "offset-beyond-64-bits": (2**64, (1,), (1,)),
    "stride-of-one-beyond-memory": (0, (1,), (2**62,)),
    "extents-wrap": (0, (2**32, 2**32, 2), (0, 0, 1)),
    "extents-wrap-around-zero": (0, (2**62, 2**62, 0), (1, 1, 1)),
    "ranks-differ": (0, (2, 1), (1,)),
    "ranks-differ-empty": (0, (0,), ()),
    "rank-of-a-thousand": (0, (1,) * 1000, (1,) * 1000),
    "shape-is-list": (0, [2], (1,)),
    "stride-is-text": (0, (2,), "1"),
    "extent-is-float": (0, (2.0,), (1,)),
    "extent-is-enormous": (0, (10**2000,), (1,)),
    "shape-none": (0, None, (1,)),
}


@FORMATS
@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_out_of_bounds(tmp_path: Path, form: Format, name: str, dtype: str | None) -> None:
    path = form.write(tmp_path / "a", [form.tensor("0", 2, *VIEWS[name])], TWO)
    refused(path, "tensor|storage offset|shape|stride", dtype=dtype)


def test_expanded_tensors_are_not_materialised(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a", ZIP.tensor("0", 2, 0, (2**40, 2), (0, 1)), TWO)
    got = load(path, dtype="float64")
    assert (got.shape, got.strides, got[-1].tolist()) == ((2**40, 2), (0, 8), [4.0, 5.0])


def test_storage_of_bytes_seen_as_wider_elements(tmp_path: Path) -> None:
    storage = ZIP.storage("0", 7, "UntypedStorage", "torch.storage")
    blobs = {"0": Blob(7, bytes(7))}
    assert load(write_zip(tmp_path / "a", rebuilt_v3(storage, (3,), (1,), "uint16"), blobs)).shape == (3,)
    refused(write_zip(tmp_path / "a", rebuilt_v3(storage, (4,), (1,), "uint16"), blobs), "element 3 of a storage of 3")


def test_conjugates_and_lacking_storages(tmp_path: Path) -> None:
    value = [rebuilt(ZIP.storage("0", 2), 0, (), (), metadata=({"conj": True},))]
    refused(write_zip(tmp_path / "a", value, TWO), r"resolve_conj\(\)")
    refused(write_zip(tmp_path / "a", [rebuilt([1.0, 2.0], 0, (), ())], TWO), "needs a storage, found list")


@FORMATS
def test_one_storage_under_two_dtypes_or_sizes(tmp_path: Path, form: Format) -> None:
    for other in (form.tensor("0", 2, 0, (), (), "IntStorage"), form.tensor("0", 1, 0, (), ())):
        value = [form.tensor("0", 2, 0, (), ()), other]
        refused(form.write(tmp_path / "a", value, TWO), "'0' is used with two dtypes or two sizes")


@FORMATS
def test_more_storage_than_file(tmp_path: Path, form: Format) -> None:
    refused(form.write(tmp_path / "a", [form.tensor("0", 2**50, 0, (1,), (1,))], TWO), "more than the file has left")


def test_storages_that_fit_one_by_one_but_not_together(tmp_path: Path) -> None:
    value = [LEGACY.tensor(str(n), 200, 0, (1,), (1,)) for n in range(100)]
    refused(write_legacy(tmp_path / "a", value, {"0": Blob(200, bytes(800))}), "more than the file has left")


def test_zip_entries(tmp_path: Path) -> None:
    path, value = tmp_path / "a", [ZIP.tensor("0", 2, 0, (2,), (1,))]
    refused(write_zip(path, value, {}), "entry 'archive/data/0' is missing")
    refused(write_zip(path, value, {"0": Blob(2, bytes(7))}), "has 7 bytes, the pickle needs 8")
    refused(write_zip(path, value, {"0": Blob(2, bytes(9))}), "has 9 bytes, the pickle needs 8")
    refused(write_zip(path, value, TWO, compression=zipfile.ZIP_DEFLATED), "is compressed, which torch.save never does")
    refused(write_zip(path, value, TWO, byteorder=b"middle"), "byte order is b'middle'")
    path.write_bytes(write_zip(path, value, TWO).read_bytes().replace(TWO["0"].data, bytes(8)))
    refused(path, "Bad CRC-32 for file 'archive/data/0'")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(path, "not a zip file")


def test_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled("x" * 10_000_000))
    refused(tmp_path / "a", "'archive/data.pkl' is compressed")


def test_legacy_storages(tmp_path: Path) -> None:
    path, value = tmp_path / "a", [LEGACY.tensor("0", 2, 0, (2,), (1,))]
    lying = {"0": Blob(2**40, TWO["0"].data)}
    refused(write_legacy(path, value, lying), "has 1099511627776 elements in the file, 2 in the pickle")
    refused(write_legacy(path, value, {"0": Blob(-1, TWO["0"].data)}), "has -1 elements in the file")
    refused(write_legacy(path, value, {"0": Blob(2, bytes(7))}), "'0' ends after 7 of 8 bytes")
    for names in ([], [0, "0"], ["1"], ["0", "0"], ["0", "1"], [0], [[]], "0", op(b"N"), {"0": 0}):
        refused(write_legacy(path, value, TWO, names=names), "list of storages")
    refused(write_legacy(path, value, TWO, names=[Persistent(("storage", FLOAT, "0", "cpu", 2, None))]), "none can be")


def test_legacy_protocol(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(pickled(MAGIC) + pickled(1002) + pickled({}))
    refused(tmp_path / "a", "protocol other than 1001")


def small_files(folder: Path) -> list[Path]:
    """A file of each kind that is read without optional packages."""
    files = [
        form.write(folder / str(len(form.tail)), {"w": form.tensor("0", 2, 0, (2, 1), (1, 2)), "n": [1, "a"]}, TWO)
        for form in (ZIP, LEGACY)
    ]
    np.savez(folder / "a.npz", w=np.ones(2), n=np.arange(3))
    return [*files, folder / "a.npz"]


def test_truncated_files(tmp_path: Path) -> None:
    for path in small_files(tmp_path):
        whole = path.read_bytes()
        for length in range(len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                load(path)


def test_damaged_files_load_or_are_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    for path in small_files(tmp_path):
        whole = path.read_bytes()
        for _ in range(1500):
            damaged = bytearray(whole)
            for _ in range(rng.choice((1, 1, 2, 4))):
                damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0x2E, 0x7F, 0xFF, rng.randrange(256)))
            path.write_bytes(damaged)
            with contextlib.suppress(CheckpointError):  # damage in a value, say, is not to be noticed
                load(path)
