"""What `import lutra` shows, at run time and to type checkers."""

import ast
import inspect
from pathlib import Path

import lutra
import pytest


def test_dir_lists_what_is_public_and_all_of_it_is_there():
    assert dir(lutra) == sorted(lutra.__all__)
    assert all(getattr(lutra, name) is not None for name in lutra.__all__)
    with pytest.raises(AttributeError, match="module 'lutra' has no attribute 'lod'"):
        lutra.lod  # noqa: B018


def test_type_checkers_see_every_export_where_it_is_loaded_from():
    """The two lists of `__init__.py`."""
    tree = ast.parse(inspect.getsource(lutra))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: f".{node.module}" for node in imports for alias in node.names} == lutra._EXPORTS
    assert {*lutra._EXPORTS, "__version__"} == set(lutra.__all__)


def test_the_package_says_that_it_is_typed():
    assert Path(inspect.getfile(lutra)).with_name("py.typed").exists()
