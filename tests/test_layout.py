"""The rooms of the house (docs/architecture.md): every folder with code is packaged, and imports point one way."""

import ast
import sys
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
