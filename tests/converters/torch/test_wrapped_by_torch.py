"""Files that PyTorch's own wrappers and savers make of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfine_jax.converters.torch.tensor_files import read_tensors
from dfine_jax.errors import UserError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


class Stem(torch.nn.Module):
    """Only what names need."""

    def __init__(self):
        super().__init__()
        self.stem1 = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 4, 3, bias=False)})

    def forward(self, x):
        return self.stem1["conv"](x)


class Model(torch.nn.Module):
    """The names of two tensors of a detector."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.stem = Stem()
        self.decoder = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.decoder(self.backbone.stem(x).mean((2, 3)))


def same(path, model, **expected):
    selected = read_tensors(path)
    state = model.state_dict()
    assert set(selected.tensors) == set(state)
    assert all(np.array_equal(selected.tensors[key], state[key].numpy()) for key in state)
    assert all(getattr(selected, name) == value for name, value in expected.items())


WRAPPED = {
    "plain": lambda model: model,
    "data parallel": torch.nn.DataParallel,
    "compiled": torch.compile,
    "compiled in parallel": lambda model: torch.nn.DataParallel(torch.compile(model)),
    "parallel, compiled": lambda model: torch.compile(torch.nn.DataParallel(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled average": lambda model: torch.compile(torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(model))),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("new_format", [True, False])
def test_wrappers(tmp_path, wrapper, new_format):
    model = Model()
    wrapped = WRAPPED[wrapper](model)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    if "average" in wrapper:
        wrapped = WRAPPED[wrapper](model)
    content = {"epoch": 3, "optimizer": optimizer.state_dict(), "model_state_dict": wrapped.state_dict()}
    for name, saved in {"whole": content, "raw": wrapped.state_dict()}.items():
        torch.save(saved, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=new_format)
        same(tmp_path / f"{name}.pt", model)


def test_a_compiled_part(tmp_path):
    model, whole = Model(), Model()
    whole.load_state_dict(model.state_dict())
    model.backbone.stem = torch.compile(model.backbone.stem)
    torch.save({"state_dict": {f"net.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "a.ckpt")
    same(tmp_path / "a.ckpt", whole, place="state_dict.net")


def test_the_average_beside_the_model(tmp_path):
    model, average = Model(), torch.optim.swa_utils.AveragedModel(Model())
    both = {f"model.{key}": value for key, value in model.state_dict().items()}
    both |= {f"ema_model.{key}": value for key, value in average.state_dict().items()}
    checkpoint = {
        "epoch": 1,
        "global_step": 7,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": both,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": "/tmp"}},
        "optimizer_states": [torch.optim.AdamW(model.parameters()).state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1, "out": Path("/tmp")},
    }
    torch.save(checkpoint, tmp_path / "a.ckpt")
    same(tmp_path / "a.ckpt", average.module, averaged=True, others=("state_dict.model",))


def test_other_files_of_torch(tmp_path):
    model = Model().eval()
    optimizer = torch.optim.AdamW(model.parameters())
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 8, 8)), tmp_path / "script.pt")
    torch.save(model, tmp_path / "module.pt")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 8, 8),)), tmp_path / "program.pt2")
    messages = {
        "script.pt": "a TorchScript program",
        "module.pt": r"refused, it is not a state dict: it holds a whole object of class '.*[.]Model'",
        "optimizer.pt": "the state of an optimiser",
        "tensor.pt": "a single tensor",
        "program.pt2": "a program of torch.export",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=f"{name}: .*{message}") as caught:
            read_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)
