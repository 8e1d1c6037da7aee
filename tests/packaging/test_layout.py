"""The house rules that no linter knows: who imports whom, and that everything is packaged."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"saelab": "saelab", "training": "saelab.training", "evals": "saelab.evals"}
ROOMS["dashboards"] = "saelab.dashboards"
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
ONLY_IMPORTER = {
    "transformer_lens": "saelab/model/hooked_forward.py",
    "datasets": "saelab/text/documents.py",
    "wandb": "saelab/formats/run_log.py",
}


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def relative(path):
    return path.relative_to(ROOT).as_posix()


def imported_names(path):
    """Absolute names of everything a module imports; relative imports are resolved."""
    names = []
    own_package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = own_package[: len(own_package) - node.level + 1]
                assert base, f"{relative(path)} leaves its room by a relative import"
                room = ".".join([ROOMS[base[0]], *base[1:]])
                names.append(f"{room}.{node.module}" if node.module else room)
            else:
                names.append(node.module or "")
    return names


def module_name(path):
    room, *inside = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([ROOMS[room], *inside]).removesuffix(".__init__")


def imported_on_loading(path, modules):
    """Modules that a module's own top level imports, with the packages they lie in."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    pending, wanted = list(parsed(path).body), set()
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                outer = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{outer}.{base}" if base else outer
            wanted |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
            ]
    with_packages = {".".join(n.split(".")[:end]) for n in wanted for end in range(1, 9)}
    # The packages a module lies in are being loaded already.
    return {n for n in with_packages & modules if not f"{name}.".startswith(f"{n}.")}


def test_no_module_imports_itself_by_way_of_others():
    modules = {module_name(path) for path in SOURCES}
    graph = {module_name(path): imported_on_loading(path, modules) for path in SOURCES}
    assert graph["saelab.live.session"], "no import was found: the test tests nothing"
    TopologicalSorter(graph).prepare()


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_folder_is_listed_and_mapped():
    setup = project()["tool"]["setuptools"]
    folders = {
        relative(path.parent) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")
    }
    with_modules = {relative(path.parent) for path in SOURCES}
    assert with_modules <= folders, "a folder with modules lacks __init__.py"

    def installed_name(folder):
        room, *inside = folder.split("/")
        return ".".join([ROOMS[room], *inside])

    assert sorted(setup["packages"]) == sorted(map(installed_name, folders))
    mapped = setup["package-dir"]
    for folder in folders:
        if not folder.startswith("saelab"):
            assert mapped[installed_name(folder)] == folder


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_rooms_import_only_what_they_may(path):
    room = path.relative_to(ROOT).parts[0]
    below = ("saelab.training", "saelab.evals", "saelab.dashboards")
    forbidden = [name for name in below if name != ROOMS[room]]
    for name in imported_names(path):
        assert name.split(".")[0] not in ("training", "evals", "dashboards"), f"bare import {name}"
        for other in forbidden:
            assert name != other and not name.startswith(other + "."), f"{room} imports {name}"
    for library, importer in ONLY_IMPORTER.items():
        if any(name.split(".")[0] == library for name in imported_names(path)):
            assert relative(path) == importer, f"only {importer} imports {library}"


NO_NOUNS = {"found", "here", "mine", "one", "own", "theirs"}
"""What says nothing of what a variable holds."""


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_variables_are_called_what_they_hold(path):
    nodes = list(ast.walk(parsed(path)))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert not (stored | {n.arg for n in nodes if isinstance(n, ast.arg)}) & NO_NOUNS


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_short_start_with_what_they_are_and_unpickle_nothing(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    assert not re.search(r"pickle\.loads?\(|Unpickler|allow_pickle=True", text)
    if "torch.load(" in text:
        # Dictionaries and activations of others, of which nothing is run.
        allowed = ("saelab/dictionary/importers/files.py", "saelab/cache/arrays.py")
        assert relative(path) in allowed
        assert text.count("torch.load(") == text.count("weights_only=True")


def test_class_names_are_unique():
    """A name that two files give to different things sends its reader to the wrong one."""
    trees = [parsed(path) for path in SOURCES]
    names = Counter(
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.slow
def test_every_module_can_be_imported_first():
    """In a process of its own, forgetting ours before each: the order must not matter."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [m for m in sys.modules if m.split('.')[0] == 'saelab']:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
    )
    names = [module_name(path) for path in SOURCES]
    done = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_loads_no_heavy_library():
    program = (
        "import sys; from saelab.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'transformer_lens', 'transformers', 'numpy', 'tyro', "
        "'pydantic', 'plotly', 'streamlit', 'datasets', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def config_fields():
    """(class, field) of every dataclass that is a config or a command."""
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and node.name.endswith(
                ("Config", "Options", "Command", "Filter", "Overrides")
            ):
                for part in node.body:
                    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                        yield path, node, part


def test_every_config_field_is_documented():
    for path, owner, field in config_fields():
        after = owner.body[owner.body.index(field) + 1 :]
        documented = after and isinstance(after[0], ast.Expr)
        name = f"{owner.name}.{field.target.id}"
        assert documented, f"{relative(path)}: {name} has no docstring"
