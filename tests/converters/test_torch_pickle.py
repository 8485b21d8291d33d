"""The checkpoint reader builds data and refuses everything else; no PyTorch is needed here."""

import io
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from converters import torch_pickle
from converters.pickle_values import TensorRef
from dfine_jax.errors import UserError

STATE = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.linspace(-1, 1, 5).astype(np.float16),
    "brain": np.linspace(-1, 1, 6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "count": np.asarray(7, np.int64),
    "mask": np.asarray([[True], [False]]),
    "empty": np.zeros((0, 4), np.float32),
}


def write_zip(path, program: bytes, storages: dict[str, bytes], compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"x/data/{key}", data)
    return path


def tensor_program(numel: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str = "0") -> bytes:
    """Pickle of one float32 tensor."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"
    rest = number(offset) + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR."


def read_all(path):
    with torch_pickle.opened(path) as content:
        found = content["model"] if isinstance(content, dict) and "model" in content else {"": content}
        return torch_pickle.materialise({k: v for k, v in found.items() if isinstance(v, TensorRef)})


def test_written_state_is_read_back_exactly(tmp_path):
    torch_pickle.save(tmp_path / "a.pth", {"model": STATE})
    found = read_all(tmp_path / "a.pth")
    assert list(found) == list(STATE)
    for key, value in STATE.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        assert found[key].tobytes() == value.tobytes()


def test_equal_content_gives_equal_files_and_leaves_nothing_else(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch_pickle.save(tmp_path / name / "m.pth", {"model": STATE})
    assert (tmp_path / "a/m.pth").read_bytes() == (tmp_path / "b/m.pth").read_bytes()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["m.pth"]


def test_offsets_and_strides(tmp_path):
    values = np.arange(20, dtype=np.float32)
    path = write_zip(tmp_path / "a.pth", tensor_program(20, 2, (3, 2), (1, 6)), {"0": values.tobytes()})
    expected = np.array([[2, 8], [3, 9], [4, 10]], np.float32)
    np.testing.assert_array_equal(read_all(path)[""], expected)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((5, 5), (5, 1), 0), ((4,), (1,), 17), ((4,), (7,), 0), ((1 << 40,), (0,), 0), ((2,), (-1,), 3), ((2,), (1,), -1)],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, shape, strides, offset):
    path = write_zip(tmp_path / "a.pth", tensor_program(20, offset, shape, strides), {"0": bytes(80)})
    with pytest.raises(UserError, match="damaged"):
        read_all(path)


class Attack:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (__import__("os").system, ("touch {}",), "system"),
        (eval, ("__import__('pathlib').Path('{}').touch()",), "eval"),
        (getattr, ("x", "y"), "getattr"),
        (io.open, ("{}", "w"), "open"),
        (__import__("subprocess").Popen, ("touch {}",), "Popen"),
        (__import__("importlib").import_module, ("os",), "importlib.import_module"),
    ],
)
def test_calls_are_refused_by_name(tmp_path, function, args, name, protocol):
    witness = tmp_path / "witness"
    attack = Attack(function, *(a.format(witness) for a in args))
    program = pickle.dumps({"model": {"w": attack}}, protocol)
    path = write_zip(tmp_path / "a.pth", program, {})
    with pytest.raises(UserError, match=f"refused.*{name}"), torch_pickle.opened(path):
        pass
    assert not witness.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"(S'touch x'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch x'\no.",  # OBJ
        b"\x80\x02ctorch\nload\n(X\x01\x00\x00\x00xtR.",
        b"\x80\x02ctorch.hub\nload\n(X\x01\x00\x00\x00xtR.",
        b"\x80\x02cbuiltins\n__import__\n(X\x02\x00\x00\x00ostR.",
        b"\x80\x02\x82\x01.",  # extension registry
        b"P1\n.",  # persistent id as text
    ],
)
def test_other_ways_to_call_are_refused(tmp_path, program):
    path = write_zip(tmp_path / "a.pth", program, {})
    with pytest.raises(UserError, match="refused"), torch_pickle.opened(path):
        pass


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.",  # key nested a million deep
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",  # state for a function
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a type that is called
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02(K\x01.",
        b"\x80\x02j\xff\xff\xff\xff.",  # memo entry that was never made
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # string longer than the file
        b"\x80\x02",
        b"",
        b"\x80\x02X\x01\x00\x00\x00aQ.",
    ],
)
def test_malformed_programs_are_one_error(tmp_path, program):
    path = write_zip(tmp_path / "a.pth", program, {})
    with pytest.raises(UserError, match="damaged"), torch_pickle.opened(path):
        pass


def test_every_truncation_is_one_error(tmp_path):
    torch_pickle.save(tmp_path / "a.pth", {"model": STATE})
    whole = (tmp_path / "a.pth").read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        (tmp_path / "b.pth").write_bytes(whole[:length])
        with pytest.raises(UserError, match="b.pth"):
            read_all(tmp_path / "b.pth")


def test_changed_bytes_never_end_in_anything_but_an_answer_or_one_error(tmp_path):
    torch_pickle.save(tmp_path / "a.pth", {"model": STATE})
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        program = archive.read("a/data.pkl")
        storages = {str(i): archive.read(f"a/data/{i}") for i in range(len(STATE))}
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        changed = bytearray(program)
        for position in rng.integers(0, len(program), 3):
            changed[position] = rng.integers(0, 256)
        path = write_zip(tmp_path / "b.pth", bytes(changed), storages)
        try:
            read_all(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_missing_storage(tmp_path):
    path = write_zip(tmp_path / "a.pth", tensor_program(20, 0, (20,), (1,), key="5"), {"0": bytes(80)})
    with pytest.raises(UserError, match="x/data/5 is missing"):
        read_all(path)


def test_storage_of_another_size(tmp_path):
    path = write_zip(tmp_path / "a.pth", tensor_program(20, 0, (20,), (1,)), {"0": bytes(79)})
    with pytest.raises(UserError, match="holds 79 bytes instead of 80"):
        read_all(path)


def test_changed_storage_fails_its_checksum(tmp_path):
    path = write_zip(tmp_path / "a.pth", tensor_program(20, 0, (20,), (1,)), {"0": b"\x11" * 80})
    path.write_bytes(path.read_bytes().replace(b"\x11" * 80, b"\x11" * 79 + b"\x12"))
    with pytest.raises(UserError, match="damaged entry"):
        read_all(path)


def test_compressed_entries_are_refused(tmp_path):
    program = tensor_program(20, 0, (20,), (1,))
    path = write_zip(tmp_path / "a.pth", program, {"0": bytes(80)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_all(path)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"version https://git-lfs", b"", b"\x80\x04N."])
def test_other_files_are_named_as_such(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        read_all(tmp_path / "a.pth")


def test_other_zip_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        read_all(tmp_path / "a.pth")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_all(tmp_path / "a.pth")


def test_unwritable_type(tmp_path):
    with pytest.raises(TypeError, match="complex"):
        torch_pickle.save(tmp_path / "a.pth", {"model": {"w": np.zeros(2, np.complex64)}})
    assert not (tmp_path / "a.pth").exists()
