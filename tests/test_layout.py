"""The rooms of the house (docs/architecture.md): every folder with code is packaged, and imports point one way."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has it from 3.11 on; pip brings a copy
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
NOT_PACKAGED = {"tests", "benchmarks", "examples", "docs", "build", "dist"}
MAY_IMPORT = {
    "ir": {"ir"},
    "passes": {"passes", "ir"},
    "codegen": {"codegen", "ir"},
    "recipes": {"recipes", "ir"},
    "torch_plugin": {"torch_plugin", "recipes", "passes", "codegen", "ir"},
    "tuning": {"tuning", "torch_plugin", "recipes", "passes", "codegen", "ir"},
    "cli": {"cli", "tuning", "torch_plugin", "recipes", "passes", "codegen", "ir"},
}
ONLY_IN = {"torch_mlir": "ir", "tvm": "codegen", "tvm_ffi": "codegen"}
SOURCES = sorted(
    path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts
)


def imported_modules(path: Path) -> list[str]:
    """Absolute names of all modules that `path` imports, `lutra.` written as the import package."""
    package = ["lutra", *path.relative_to(ROOT).parent.parts]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return names


def test_every_folder_with_code_is_in_the_package_list():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {
        path.parent.relative_to(ROOT)
        for path in ROOT.rglob("*.py")
        if not path.relative_to(ROOT).parts[0].startswith(".") and "__pycache__" not in path.parts
    }
    expected = {
        ".".join(("lutra", *folder.parts))
        for folder in folders
        if not folder.parts or folder.parts[0] not in NOT_PACKAGED
    }
    assert listed == expected


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    folder = path.relative_to(ROOT).parts[0]
    for name in imported_modules(path):
        top, _, rest = name.partition(".")
        if top == "lutra" and rest.split(".")[0] in MAY_IMPORT:
            assert rest.split(".")[0] in MAY_IMPORT[folder], f"{path.name} imports {name}"
        if top in ONLY_IN:
            assert folder == ONLY_IN[top], f"{path.name} imports {name}: only {ONLY_IN[top]}/ may"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_can_be_read_in_one_sitting(path: Path):
    assert len(path.read_text().splitlines()) <= 500


CPU_ROOMS = ("codegen/kernels/cpu/", "codegen/targets/cpu/", "codegen/pipelines/cpu.py")
OF_CPUS = {"ctypes", "mmap", "subprocess", "tvm.script.ir_builder", "tvm.script.ir_builder.tirx"}
"""What takes addresses, pages, OpenMP's library and vectors."""
CODEGEN = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "codegen"]


@pytest.mark.parametrize("path", CODEGEN, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_of_cpus_stays_in_their_rooms_and_code_generation_has_layers(path: Path):
    name, imported = str(path.relative_to(ROOT)), imported_modules(path)
    if not name.startswith(CPU_ROOMS):
        assert not OF_CPUS & set(imported)
    if name.startswith("codegen/kernels/"):
        assert not [module for module in imported if module.startswith("lutra.codegen.lowering")]
    if name.startswith("codegen/lowering/") or name == "codegen/select.py":
        assert not [module for module in imported if module.startswith("lutra.codegen.targets")]


def test_no_files_import_each_other():
    files = {".".join(("lutra", *path.relative_to(ROOT).with_suffix("").parts)): path for path in SOURCES}
    names = {name.removesuffix(".__init__"): path for name, path in files.items()}
    imports = {name: set(imported_modules(path)) & names.keys() - {name} for name, path in names.items()}
    TopologicalSorter(imports).prepare()  # raises `CycleError`
