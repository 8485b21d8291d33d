"""The rules of the house, checked on the source: who may import whom, where collectives live, how long things get."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dfine_jax", "converters", "experiments")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_FILES_AT_THE_ROOT = 7

# Part of the tree -> what it must not import, at module level or inside functions; the rooms are in CONTRIBUTING.md.
FORBIDDEN = {
    "dfine_jax": ("torch", "torchvision", "transformers", "tensorflow", "onnx", "openvino", "experiments", "tests"),
    "dfine_jax/errors.py": ("jax", "numpy"),
    "dfine_jax/config.py": ("jax", "numpy", "flax"),
    "dfine_jax/families/dfine/variants.py": ("dfine_jax.nn", "jax", "numpy"),
    "dfine_jax/ops": ("flax", "optax"),
    "dfine_jax/nn": ("optax",),
    "dfine_jax/losses": ("flax.linen", "flax.nnx"),
    "dfine_jax/data": ("jax", "flax", "optax", "tensorflow"),
    "dfine_jax/serving/artefact.py": ("jax", "flax", "dfine_jax.serving.backends"),
    "dfine_jax/serving/backends": ("flax",),
    "converters": ("experiments", "torch", "transformers", "tests"),
}
# Runtimes of exported files, each in the one module that wraps it.
RUNTIMES = {"dfine_jax/serving/backends/openvino.py": "openvino"}
COLLECTIVES = {"pmean", "psum", "pmax", "pmin", "all_gather", "all_to_all", "ppermute", "axis_index", "axis_size"}


@pytest.fixture(scope="module", params=SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def source(request) -> tuple[str, ast.Module, str]:
    text = request.param.read_text()
    return request.param.relative_to(ROOT).as_posix(), ast.parse(text), text


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, ``from a import b`` as ``a.b``, also by ``import_module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_imports_point_the_allowed_way(source):
    path, tree, _ = source
    for part, forbidden in FORBIDDEN.items():
        if path == part or path.startswith(part + "/"):
            names = [name for name in imports(tree) if path not in RUNTIMES or not is_within(name, RUNTIMES[path])]
            bad = [name for name in names for package in forbidden if is_within(name, package)]
            assert not bad, f"{path} imports {bad}"


def test_the_rule_sees_a_breach():
    tree = ast.parse("def f():\n    from jax import numpy\n    import torch.nn\nimport_module('jax.lax')")
    found = [n for n in imports(tree) if is_within(n, "jax") or is_within(n, "torch")]
    assert sorted(found) == ["jax.lax", "jax.numpy", "torch.nn"]
    tree = ast.parse("if TYPE_CHECKING:\n    import dfine_jax.cli\nelse:\n    from dfine_jax.api import train\n")
    assert set(imported_rooms([tree])) == {("cli", True), ("api", False)}


def drawing() -> dict[str, tuple[set[str], set[str]]]:
    """Rooms from top to bottom -> rooms that they import, and those of them in parentheses, of CONTRIBUTING.md."""
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {room: (set(re.findall(r"`(\w+)`", cell)), set(re.findall(r"\(`(\w+)`\)", cell))) for room, cell in rows}


def room_of(path: str) -> str:
    return path.removeprefix("dfine_jax/").removesuffix(".py").split("/")[0]


def imported_rooms(nodes: Iterable[ast.AST], called: bool = False) -> Iterator[tuple[str, bool]]:
    """Rooms that are imported, and whether only when a function is called or for types."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported_rooms(node.body, True)
            yield from imported_rooms(node.orelse, called)
            continue
        for name in imports(node) if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call)) else ():
            if name.startswith("dfine_jax.") and not name.startswith("dfine_jax.__"):
                yield name.split(".")[1], called
        inside = called or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from imported_rooms(ast.iter_child_nodes(node), inside)


def test_the_drawing_of_rooms_is_true():
    found: dict[str, set[str]] = {}
    at_once: dict[str, set[str]] = {}
    for file in SOURCES:
        path = file.relative_to(ROOT).as_posix()
        room = room_of(path)
        if path not in ("dfine_jax/__init__.py", "dfine_jax/__main__.py") and room != "experiments":
            for other, called in imported_rooms([ast.parse(file.read_text())]):
                found.setdefault(room, set()).update({other} - {room})
                at_once.setdefault(room, set()).update(set() if called else {other} - {room})
    drawn = drawing()
    rooms = list(drawn)
    assert {room: found.get(room, set()) for room in rooms} == {room: named for room, (named, _) in drawn.items()}
    files_and_folders = {room_of(p.relative_to(ROOT).as_posix()) for p in SOURCES} - {
        "__init__",
        "__main__",
        "experiments",
    }
    assert set(rooms) == files_and_folders
    for room, (named, when_called) in drawn.items():
        above = {other for other in named if rooms.index(other) < rooms.index(room)}
        assert above == when_called, f"{room} imports {above ^ when_called} upwards"
        assert not at_once.get(room, set()) & when_called, f"{room} imports {when_called} on loading"
    assert not [room for room in rooms if "converters" in at_once.get(room, ())]


def test_few_files_lie_outside_the_rooms():
    assert len(list((ROOT / "dfine_jax").glob("*.py"))) <= MAX_FILES_AT_THE_ROOT
    assert len({p.resolve() for p in SOURCES}) == len(SOURCES)  # nobody walks through the link to the converters


def test_there_is_one_name_to_import_converters_by():
    assert run_python("import dfine_jax.converters as c; print(c.__name__)") == "dfine_jax.converters"
    result = subprocess.run([sys.executable, "-c", "import converters"], cwd=ROOT, capture_output=True, text=True)
    assert "import dfine_jax.converters, not converters" in result.stderr


def test_no_folder_of_tests_hides_a_library():
    """Folders of tests are on the path of imports: a folder ``torch`` there would be found where torch is missing."""
    for folder in {path.parent for path in (ROOT / "tests").rglob("*.py")}:
        names = {p.name for p in folder.iterdir() if p.is_dir()}
        assert not names & {"torch", "onnx", "openvino", "tensorrt", "transformers", "jax", "flax"}, folder


def test_two_pmaps_and_all_collectives_are_in_the_step(source):
    path, tree, _ = source
    attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    if path == "dfine_jax/training/step/step.py":
        assert attributes.count("pmap") == 2
    elif path.startswith("dfine_jax/"):
        assert "pmap" not in attributes
        allowed = {"pmean", "axis_size"} if path == "dfine_jax/nn/layers.py" else set()  # synchronised batch norm
        assert COLLECTIVES & set(attributes) <= allowed


def test_files_and_functions_are_short(source):
    path, tree, text = source
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            documented = ast.get_docstring(node, clean=False) or ""
            length = node.end_lineno - node.lineno + 1 - (documented.count("\n") + 1 if documented else 0)
            assert length <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {length} lines"


def test_no_broad_except_print_or_leftovers(source):
    path, tree, text = source
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            assert caught not in ("", "Exception", "BaseException"), f"{path}:{node.lineno} catches everything"
        speaks = path == "dfine_jax/cli.py" or path.startswith(("dfine_jax/commands/", "experiments/"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert speaks, f"{path}:{node.lineno} prints; use logging"
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            assert path == "dfine_jax/__init__.py"
    assert not [word for word in ("TODO", "FIXME", "XXX") if word in text]


def top_level(body: list[ast.stmt]) -> tuple[set[str], set[str]]:
    """Names that a module defines, and those that it imports from others."""
    defined, imported = set(), set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.If):
            for below in (node.body, node.orelse):
                more, from_others = top_level(below)
                defined, imported = defined | more, imported | from_others
    return defined, imported


def test_names_are_imported_from_where_they_are_defined(source):
    """The surfaces of packages, their ``__init__.py``, are for users."""
    path, tree, _ = source
    for node in ast.walk(tree):
        file = ROOT / f"{node.module.replace('.', '/')}.py" if isinstance(node, ast.ImportFrom) else None
        if isinstance(node, ast.ImportFrom) and file and file.is_file():
            defined, imported = top_level(ast.parse(file.read_text()).body)
            elsewhere = [a.name for a in node.names if a.name not in defined and a.name in imported]
            assert not elsewhere, f"{path} imports {elsewhere} from {node.module}, which imports them itself"


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_fast_and_starts_no_jax():
    code = "import sys, time; t = time.perf_counter(); import dfine_jax; s = time.perf_counter() - t; "
    code += "print(s, 'jax' in sys.modules, 'numpy' in sys.modules)"
    runs = [run_python(code).split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in runs) < 0.3
    assert all(flags == ["False", "False"] for _, *flags in runs)


def test_public_names_exist():
    assert run_python("import dfine_jax; print([n for n in dfine_jax.__all__ if not getattr(dfine_jax, n)])") == "[]"
    assert run_python("import dfine_jax; print(hasattr(dfine_jax, 'Detectr'))") == "False"


@pytest.mark.parametrize("path", sorted((ROOT / "dfine_jax/data").rglob("[!_]*.py")), ids=lambda p: p.stem)
def test_loader_processes_never_import_jax(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert run_python(f"import sys, {name}; print('jax' in sys.modules)") == "False"


@pytest.mark.parametrize("module", ["dfine_jax.prediction.detector", "dfine_jax.data.picture.draw", "dfine_jax.cli"])
def test_the_detector_can_be_imported_without_jax(module):
    assert run_python(f"import sys, {module}; print('jax' in sys.modules)") == "False"


# Names of families and backbones; programs and users know the package, the command and its environment by the first.
_NAMES = re.compile(r"d-?fine|deim|rt-?detr|rf-?detr|hgnet|resnet", re.IGNORECASE)
_OWN = re.compile(
    r"dfine[_-]jax|dfine_jax_\w+|DFINE_[A-Z]*|dfine-(batches|columns|annotations-)"
    r"|(?<![\w.-])dfine(?=[ :] ?)|(?<= )dfine$"
)
_OLD_WORDS = {"dfine_jax/system/stored.py": ["dfine", "deim"]}  # of old files: augmentations once had these names


def named(tree: ast.AST) -> Iterator[str]:
    """Identifiers and strings, documentation and examples in help texts aside, that name a family or a backbone.

    The command's name is one only where it stands alone.
    """
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    skipped |= {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg in ("epilog", "prog")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            texts = [node.value] if isinstance(node.value, str) and id(node) not in skipped else []
        else:
            fields = (getattr(node, field, None) for field in ("id", "attr", "name", "arg", "module", "asname"))
            texts = [text for text in fields if isinstance(text, str)]
        yield from (text for text in texts if _NAMES.search(_OWN.sub("", text)))


def test_only_the_families_know_names_of_models(source):
    path, tree, _ = source
    if not path.startswith(("dfine_jax/families/", "experiments/")):
        assert list(named(tree)) == _OLD_WORDS.get(path, [])


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('x = "dfine train"; y = "DFINE_CACHE"; z = "dfine_jax"', []),
        ('"""D-FINE."""', []),
        ('raise UserError("not D-FINE")', ["not D-FINE"]),
        ("from dfine_jax.families.dfine import loss", ["dfine_jax.families.dfine"]),
        ('if family == "dfine": pass', ["dfine"]),
        ('methods = {"deim": 1}', ["deim"]),
        ("model = RTDetr(1)", ["RTDetr"]),
        ('file = f"{size}-hgnetv2.pth"', ["-hgnetv2.pth"]),
        ('name = "dfine-n-coco"', ["dfine-n-coco"]),
    ],
)
def test_the_rule_sees_names(code, found):
    assert list(named(ast.parse(code))) == found
