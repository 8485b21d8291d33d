"""Files that PyTorch writes are read, and files written here are read by PyTorch."""

import collections
import os

import numpy as np
import pytest

from dfine_jax.converters.torch import torch_pickle
from dfine_jax.errors import UserError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def tensors():
    base = torch.arange(24, dtype=torch.float32)
    return collections.OrderedDict(
        view=base[3:9].view(2, 3),
        transposed=torch.arange(12.0).view(3, 4).t(),
        shared=base,
        parameter=torch.nn.Parameter(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))),
        half=torch.tensor([1.5, -2.25]).half(),
        brain=torch.tensor([1.5, -2.25]).bfloat16(),
        double=torch.tensor([0.1], dtype=torch.float64),
        count=torch.tensor(7),
        mask=torch.tensor([True, False]),
        byte=torch.tensor([1, 255], dtype=torch.uint8),
        empty=torch.zeros(0, 3),
    )


def training_checkpoint(model_state):
    """What the reference's solver writes, and what goes with it: optimiser, schedulers, gradient scaler."""
    layer = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "date": "2025-04-11T10:00:00",
        "last_epoch": 3,
        "model": layer.state_dict(),
        "criterion": collections.OrderedDict(),
        "postprocessor": collections.OrderedDict(),
        "ema": {"module": model_state, "updates": 5},
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [500]).state_dict(),
        "lr_warmup_scheduler": {"warmup_end_values": [0.1], "last_step": 7},
        "best": np.float64(0.428),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "classes": {1, 2},
        "nothing": None,
        "infinite": float("inf"),
        "large": 2**70,
    }


@pytest.mark.parametrize("new_format", [True, False])
def test_training_checkpoint(tmp_path, new_format):
    expected = tensors()
    content = training_checkpoint(expected)
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    with torch_pickle.opened(tmp_path / "a.pth") as found:
        state = torch_pickle.materialise(found["ema"]["module"])
        weight = found["model"]["weight"].numpy()
    assert list(state) == list(expected)
    for key, value in expected.items():
        value = value.detach()
        assert state[key].shape == tuple(value.shape) and str(state[key].dtype) == str(value.dtype).split(".")[1]
        np.testing.assert_array_equal(state[key].astype(np.float64), value.double().numpy())
    np.testing.assert_array_equal(weight, content["model"]["weight"].numpy())
    assert found["best"] == 0.428 and found["classes"] == {1, 2} and found["large"] == 2**70
    assert found["lr_scheduler"]["milestones"] == {500: 1} and found["scaler"]["scale"] == 65536.0


@pytest.mark.parametrize("new_format", [True, False])
def test_truncation_is_one_error(tmp_path, new_format):
    torch.save({"model": tensors()}, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    whole = (tmp_path / "a.pth").read_bytes()
    for length in range(0, len(whole) - 1, 97):
        (tmp_path / "b.pth").write_bytes(whole[:length])
        with pytest.raises(UserError, match="b.pth"), torch_pickle.opened(tmp_path / "b.pth") as content:
            torch_pickle.materialise(content["model"])


@pytest.mark.parametrize("new_format", [True, False])
def test_whole_modules_are_refused(tmp_path, new_format):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        UserError, match="refused.*not a state dict.*torch.nn.modules.linear.Linear.*save its state dict alone"
    ):
        with torch_pickle.opened(tmp_path / "a.pth"):
            pass


@pytest.mark.parametrize("memory_map", [False, True])
def test_torch_reads_what_is_written(tmp_path, memory_map):
    expected = tensors()
    torch.save({"model": expected}, tmp_path / "a.pth")
    with torch_pickle.opened(tmp_path / "a.pth") as content:
        state = torch_pickle.materialise(content["model"])
    torch_pickle.save(tmp_path / "b.pth", {"model": state})
    found = torch.load(tmp_path / "b.pth", weights_only=True, mmap=memory_map)["model"]
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value.detach())
    assert os.stat(tmp_path / "b.pth").st_mode & 0o444 == 0o444
