"""The checkpoint reader builds data and refuses everything else; no PyTorch is needed here."""

import argparse
import datetime
import io
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT

from dfine_jax.converters.torch import torch_pickle
from dfine_jax.converters.torch.pickle_values import SetAside, TensorRef
from dfine_jax.converters.torch.tensor_files import read_tensors
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
        b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",  # key nested a hundred thousand deep
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


def test_tuples_of_plain_values_may_be_keys(tmp_path):
    content = {"model": {}, "scores": {(1, "a"): 0.5, ("b", None, 2.0): 1}}
    path = write_zip(tmp_path / "a.pth", pickle.dumps(content, 2), {})
    with torch_pickle.opened(path) as found:
        assert found == content


def test_plain_data_beside_the_weights_is_set_aside(tmp_path):
    """Paths, times, arrays: nothing of it is built, the rest is read."""
    content = {
        "state_dict": {"w": 1},
        "out": pathlib.PurePosixPath("/tmp/x"),
        "when": datetime.datetime(2025, 1, 2, tzinfo=None),
        "results": np.arange(12.0).reshape(3, 4),
        "names": np.array(["a", "bc"]),
        "objects": np.array([{}, None], object),
        "scores": [np.float32(0.5), np.int64(3), np.float64(0.25)],
    }
    for protocol in (2, 3, 4):  # torch.save writes 2
        path = write_zip(tmp_path / "a.pth", pickle.dumps(content, protocol), {})
        with torch_pickle.opened(path) as found:
            assert found["state_dict"] == {"w": 1} and found["scores"] == [0.5, 3, 0.25]
            kinds = {type(found[name]) for name in ("out", "when", "results", "names", "objects")}
            assert kinds == {SetAside}, protocol


@pytest.mark.parametrize("kind", [argparse.Namespace, types.SimpleNamespace])
def test_a_namespace_is_read_as_its_values(tmp_path, kind):
    """Arguments of a run; of what is set aside among them nothing is built."""
    arguments = kind(lr=0.1, names=["a", "b"], inner=kind(size=384), out=pathlib.PurePosixPath("/tmp/x"))
    for protocol in (2, 3, 4):
        path = write_zip(tmp_path / "a.pth", pickle.dumps({"args": arguments, "again": arguments}, protocol), {})
        with torch_pickle.opened(path) as found:
            out = found["args"].pop("out")
            assert found["args"] == {"lr": 0.1, "names": ["a", "b"], "inner": {"size": 384}}
            assert isinstance(out, SetAside) and found["again"] is found["args"]


NAMESPACE = b"cargparse\nNamespace\n"


@pytest.mark.parametrize("state", [b"K\x01", b"N}\x86", b"(K\x01e"])
def test_the_state_of_a_namespace_is_a_dictionary(tmp_path, state):
    path = write_zip(tmp_path / "a.pth", b"\x80\x02" + NAMESPACE + b")\x81" + state + b"b.", {})
    with pytest.raises(UserError, match="damaged"):
        read_all(path)


ONE = b"X\x01\x00\x00\x00a"


def copies(copy: bytes, times: int) -> bytes:
    """A program that copies a container of a thousand entries many times and keeps each copy."""
    fill = b"(" + b"".join(b"M" + struct.pack("<H", i) for i in range(1000))
    start = {b"list": b"]q\x00" + fill + b"e0", b"dict": b"}q\x00" + fill[:1] + b"".join(
        b"M" + struct.pack("<H", i) + b"K\x01" for i in range(1000)) + b"u0"}  # fmt: skip
    made = start[b"dict" if b"dict" in copy or b"Ordered" in copy else b"list"]
    return b"\x80\x02" + made + b"](" + (b"c" + copy + b"\nh\x00\x85R") * times + b"e."


ATTACKS = {
    "lists": copies(b"builtins\nlist", 40_000),
    "sets": copies(b"builtins\nset", 10_000),
    "dicts": copies(b"builtins\ndict", 10_000),
    "ordered": copies(b"collections\nOrderedDict", 10_000),
    "sizes": copies(b"torch\nSize", 40_000),
    "namespaces": b"\x80\x02}q\x00(" + b"".join(
        b"X\x04\x00\x00\x00" + b"%04d" % i + b"K\x01" for i in range(1000)) + b"u0]("
    + (NAMESPACE + b")\x81h\x00b") * 10_000 + b"e.",
    "memoised": b"\x80\x02cbuiltins\nlist\nq\x01]q\x00("
    + b"K\x01" * 5000 + b"e0](" + b"h\x01h\x00\x85R" * 60_000 + b"e.",
    "empty sets": b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l.",
    "empty dicts": b"\x80\x04(" + b"}" * 3_000_000 + b"l.",
    "memo": b"\x80\x04N" + b"\x94" * 3_000_000 + b".",
    "texts": b"\x80\x02X\xa0\x86\x01\x00" + b"a" * 100_000 + b"q\x000](" + (
        b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R") * 100_000 + b"e.",
}  # fmt: skip

MEASURE = """
import resource, sys
from dfine_jax.converters.torch import torch_pickle
from dfine_jax.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with torch_pickle.opened(sys.argv[1]):
        said = "read"
except UserError as error:
    said = str(error)
    assert "truncated" not in said, said
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, said)
"""


@pytest.mark.parametrize("attack", ATTACKS)
def test_memory_is_bounded_by_the_size_of_the_file(tmp_path, attack):
    """Measured in a process of its own: what the program builds stays below what is allowed, or the file is refused."""
    path = write_zip(tmp_path / "a.pth", ATTACKS[attack], {})
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    grown, said = done.stdout.split(" ", 1)
    allowed = 64 * path.stat().st_size + (16 << 20)
    assert int(grown) * 1024 < allowed + (32 << 20), (attack, grown, said)
    if attack in ("lists", "sets", "dicts", "ordered", "sizes", "memoised", "texts"):
        assert "refused, its pickle builds more than 64 times what the file holds" in said


@pytest.mark.parametrize("name", [b"builtins\nlist", b"builtins\nset", b"collections\nOrderedDict", b"torch\nSize"])
def test_a_text_is_not_taken_apart(tmp_path, name):
    """Each of its characters would take eight times its memory and more."""
    for text in (b"X\x04\x00\x00\x00abcd", b"C\x04abcd"):
        path = write_zip(tmp_path / "a.pth", b"\x80\x03c" + name + b"\n" + text + b"\x85R.", {})
        with pytest.raises(UserError, match="a container made of something that is none"), torch_pickle.opened(path):
            pass


def test_tensors_that_repeat_the_same_data_are_refused(tmp_path):
    """A megabyte, four hundred times."""
    numel = 1 << 18
    program = tensor_program(numel, 0, (numel,), (1,))
    body = program[2:-1]
    many = b"\x80\x02}(" + b"".join(b"X\x03\x00\x00\x00%03d" % i + body for i in range(400)) + b"u."
    path = write_zip(tmp_path / "a.pth", many, {"0": bytes(4 * numel)})
    with pytest.raises(UserError, match="a.pth: refused, its 400 tensors repeat the same data"):
        read_tensors(path)
    few = b"\x80\x02}(" + b"".join(b"X\x03\x00\x00\x00%03d" % i + body for i in range(4)) + b"u."
    assert len(read_tensors(write_zip(tmp_path / "b.pth", few, {"0": bytes(4 * numel)})).tensors) == 4


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((0,), (1 << 62,)),
        ((0, 3), (1 << 60, 1 << 60)),
        ((3, 0), (1, 1)),
        ((1,), (1 << 62,)),
        ((1, 2), (1 << 40, 1)),
        ((), ()),
    ],
)
def test_strides_of_sides_without_a_second_entry_say_nothing(tmp_path, shape, strides):
    path = write_zip(tmp_path / "a.pth", tensor_program(20, 0, shape, strides), {"0": bytes(80)})
    assert read_all(path)[""].shape == shape


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((0, 1 << 62), (1, 1)),
        ((0, 1 << 40, 1 << 40), (1, 1, 1)),
        ((2, 2), (1 << 62, 1)),
        ((1,) * 70, (1,) * 70),
        ((2,), ()),
    ],
)
def test_shapes_that_no_array_has_are_refused(tmp_path, shape, strides):
    path = write_zip(tmp_path / "a.pth", tensor_program(20, 0, shape, strides), {"0": bytes(80)})
    with pytest.raises(UserError, match="damaged"):
        read_all(path)


def test_random_geometry_gives_the_array_or_one_error(tmp_path):
    rng, read = np.random.default_rng(0), 0
    values = np.arange(20, dtype=np.float32)
    for _ in range(400):
        axes = int(rng.integers(0, 4))
        shape = tuple(
            int(side) for side in rng.choice([0, 1, 2, 3, 5, 1 << 33], axes, p=[0.1, 0.2, 0.3, 0.2, 0.15, 0.05])
        )
        strides = tuple(int(side) for side in rng.choice([0, 1, 2, 6, 19, 1 << 62], axes))
        offset = int(rng.choice([0, 1, 7, 19, 20, 1 << 40]))
        path = write_zip(tmp_path / "a.pth", tensor_program(20, offset, shape, strides), {"0": values.tobytes()})
        try:
            found = read_all(path)[""]
        except UserError:
            continue
        read += 1
        assert found.shape == shape
        if not found.size:
            continue
        expected = np.empty(shape, np.float32)
        for place in np.ndindex(*shape):
            expected[place] = values[offset + sum(i * s for i, s in zip(place, strides, strict=True))]
        np.testing.assert_array_equal(found, expected)
    assert 50 < read < 350


@pytest.mark.parametrize("seed", range(3))
def test_random_programs_end_in_an_answer_or_one_error(tmp_path, seed):
    """Instructions in any order, most of them of those that build containers."""
    rng = np.random.default_rng(seed)
    parts = [
        b"]",
        b"}",
        b"\x8f",
        b"(",
        b")",
        b"e",
        b"u",
        b"a",
        b"s",
        b"t",
        b"l",
        b"d",
        b"0",
        b"\x85",
        b"\x86",
        b"\x94",
        b"N",
        b"R",
    ]
    parts += [
        b"K\x01",
        ONE,
        b"q\x00",
        b"h\x00",
        b"cbuiltins\nlist\n",
        b"cbuiltins\nset\n",
        b"ccollections\nOrderedDict\n",
        b"b",
    ]
    for _ in range(300):
        program = b"\x80\x04" + b"".join(parts[i] for i in rng.integers(0, len(parts), 60)) + b"."
        path = write_zip(tmp_path / "a.pth", program, {})
        try:
            with torch_pickle.opened(path):
                pass
        except UserError as error:
            assert "\n" not in str(error)


KINDS = {
    "page.pth": (b"<!DOCTYPE html>", "a web page"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "empty.pth": (b"", "it is empty"),
    "plain.pth": (b"\x80\x04N.", "a pickle that PyTorch did not write"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
    "renamed.pth": (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
    "model.h5": (b"\x89HDF\r\n", "Keras"),
    "model.gz": (b"\x1f\x8b\x08", "gzip"),
    "array.npy": (b"\x93NUMPY", "NumPy array"),
    "engine.pth": (b"ftrt\x00", "TensorRT engine"),
    "lite.pth": (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
    "text.pth": (b"just some text", "it starts with"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_files_are_called_what_they_are(tmp_path, name):
    content, message = KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not a PyTorch checkpoint or safetensors file: .*{message}") as caught:
        read_tensors(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["m/constants.pkl", "m/data.pkl", "m/code/x.py"], "a TorchScript program"),
        (["archive_format", "models/model.json"], "a program of torch.export"),
        (["best.pth", "log.txt"], "a zip archive with weights inside"),
        (["a.npy", "b.npy"], "a NumPy archive"),
        (["readme.txt"], "a zip file but not a PyTorch checkpoint"),
    ],
)
def test_other_archives_are_called_what_they_are(tmp_path, entries, message):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name in entries:
            archive.writestr(name, "x")
    with pytest.raises(UserError, match=f"a.pth: {message}"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ultralytics.nn.tasks\nDetectionModel", "a YOLO model stored whole.*none that is known here"),
        ("models.yolo\nModel", "a YOLO model stored whole"),
        (
            "src.zoo.dfine.dfine\nDFINE",
            "not a state dict: it holds a whole object of class 'src.zoo.dfine.dfine.DFINE'",
        ),
        ("__main__\nLitDetector", "whole object of class '__main__.LitDetector'.*torch.save.model.state_dict"),
        ("os\nsystem", "asks for 'os.system', which a checkpoint of weights does not need"),
    ],
)
def test_whole_objects_are_called_what_they_are(tmp_path, name, message):
    path = write_zip(tmp_path / "a.pt", b"\x80\x02c" + name.encode() + b"\n)\x81.", {})
    with pytest.raises(UserError, match=f"a.pt: refused, it .*{message}" if "os" not in name else message):
        read_tensors(path)
