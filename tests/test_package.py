import ast
import importlib
import json
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from fresh import run_fresh

import tfedge

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tfedge"

# Top to bottom: a row may import the rows below it, and its own row only inside one folder.
ROWS = (
    ("__init__", "__main__"),
    ("cli",),
    ("recipe",),
    ("page", "deploy"),
    ("stages",),
    ("callbacks", "distillation", "analyze", "debug"),
    ("convert", "ptq", "accelerators"),
    ("verify",),
    ("engines",),
    ("models", "data"),
    ("benchmark",),
    ("runtime",),  # checks with inspection that a file is sound before LiteRT opens it
    ("inspection",),
    ("affine", "report", "errors", "files"),
)
WITHOUT_TENSORFLOW = (
    *("affine", "errors", "files", "report", "inspection", "runtime", "benchmark", "accelerators"),
)
HEAVY = {"tensorflow", "keras", "tf_keras", "tensorflow_model_optimization"}


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def owner(path):
    """The name in ROWS that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(path, *, lazy=True):
    """Names of the modules that a file imports, type checking aside; `lazy`: in functions too."""
    pending, found = list(ast.parse(path.read_text()).body), []
    while pending:
        node = pending.pop()
        if is_type_checking(node):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.append(node.module)
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            continue
        pending.extend(ast.iter_child_nodes(node))
    return found


def children(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "tfedge" and len(parts) > 1 else None


def test_every_file_has_a_row():
    rows = {name for row in ROWS for name in row}
    assert {owner(path) for path in sources()} <= rows


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_the_rows_below_its_own(path):
    places = {name: place for place, row in enumerate(ROWS) for name in row}
    mine = owner(path)
    if mine in ROWS[0]:
        return
    upward = {
        module
        for module in imports(path)
        if (target := children(module)) in places
        and target != mine
        and places[target] <= places[mine]
        and not (places[target] == places[mine] == len(ROWS) - 1)
    }
    assert not upward, f"{path.name} imports {sorted(upward)}"


@pytest.mark.parametrize("name", WITHOUT_TENSORFLOW)
def test_the_device_side_imports_no_tensorflow_not_even_lazily(name):
    for path in sources():
        if owner(path) == name:
            assert not {module.split(".")[0] for module in imports(path)} & HEAVY, path


def test_only_the_tfmot_engine_imports_tfmot():
    users = {
        str(path.relative_to(PACKAGE))
        for path in sources()
        if any(m.startswith("tensorflow_model_optimization") for m in imports(path))
    }
    assert all(user.startswith("engines/tfmot") for user in users)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_says_what_it_is_for_and_stays_short(path):
    text = path.read_text()
    if text:
        assert ast.get_docstring(ast.parse(text)), f"{path} needs a docstring"
    assert len(text.splitlines()) <= 500


def test_exported_names_are_sorted_and_exist():
    assert tfedge.__all__ == sorted(tfedge.__all__)
    for name in tfedge.__all__:
        assert getattr(tfedge, name) is not None
        assert name in dir(tfedge)


def test_exported_names_do_not_turn_into_modules():
    for name in ("tfedge.convert", "tfedge.verify", "tfedge.benchmark", "tfedge.data"):
        importlib.import_module(name)
    assert all(callable(getattr(tfedge, name)) for name in ("convert", "verify", "benchmark"))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'prunes'"):
        _ = tfedge.prunes


LOADED = f"import json, sys; print(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"


def test_importing_tfedge_loads_no_tensorflow():
    assert json.loads(run_fresh(f"import tfedge; {LOADED}")) == []


def test_help_loads_no_tensorflow():
    code = f"from tfedge.cli import main; assert main(['--help']) == 0; {LOADED}"
    assert json.loads(run_fresh(code).splitlines()[-1]) == []


def test_data_in_numpy_loads_no_tensorflow():
    code = f"import tfedge; tfedge.load_dataset('digits'); {LOADED}"
    assert json.loads(run_fresh(code)) == []


def test_help_is_quick():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        run_fresh("from tfedge.cli import main; main(['--help'])")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 2.0  # 0.5 s on an idle machine; tests share theirs


def test_a_missing_package_says_which_extra_brings_it():
    code = (
        "import sys; sys.modules['keras'] = None; sys.modules['tensorflow'] = None\n"
        "import tfedge\n"
        "try:\n    tfedge.Quantize\nexcept tfedge.MissingExtraError as error:\n    print(error)\n"
    )
    assert 'pip install "tfedge[train]"' in run_fresh(code)


def setup_cfg():
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_metadata_stands_in_setup_cfg_alone():
    assert "project" not in tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert setup_cfg()["options"]["python_requires"] == ">=3.11,<3.14"


def test_every_requirement_of_the_base_and_of_training_has_an_upper_bound():
    parser = setup_cfg()
    rows = parser["options"]["install_requires"].split("\n")
    rows += parser["options.extras_require"]["train"].split("\n")
    unbounded = {row for row in rows if row and "<" not in row.split(";")[0]}
    assert unbounded == {"flatbuffers>=24.3.25"}  # numbered by date


def test_a_wheel_holds_all_of_the_package(tmp_path):
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    copied = []
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            copied.append(str(path.relative_to(ROOT)))
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert b"tfedge = tfedge.cli:main" in archive.read(entry_points)
    assert set(copied) <= names


def readme_blocks():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_readme_examples_run(tmp_path, monkeypatch):
    """They run in order, in one folder and one namespace, as a reader would run them."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    blocks = readme_blocks()
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
