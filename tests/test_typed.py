"""What editors, type checkers and help() are told of the package."""

import ast
import inspect
from pathlib import Path

import pytest

import mdmt
from mdmt import _core

PACKAGE = Path(mdmt.__file__).parent


def test_editors_see_every_name_of_the_package():
    """The stub beside mdmt/__init__.py, which loads names when they are used, lists all of them."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    listed = {
        name.name: f"mdmt.{node.module}" if node.module else None
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert {name for name, module in listed.items() if module is None} == set(mdmt._SUBMODULES)
    assert {n: m for n, m in listed.items() if m} == mdmt._EXPORTS
    assert set(mdmt.__all__) == {*mdmt._EXPORTS, "__version__"}


@pytest.mark.parametrize("name", sorted(set(mdmt.__all__) - {"__version__"}))
def test_public_signatures_have_types(name):
    """And so help(), and an editor, says what each argument is."""
    thing = getattr(mdmt, name)
    calls = [thing]
    if inspect.isclass(thing):
        own = (call for name, call in vars(thing).items() if name[0] != "_" and callable(call))
        calls = [thing.__init__, *own]
    for call in calls:
        signature = inspect.signature(call)
        bare = [
            p.name
            for p in signature.parameters.values()
            if p.annotation is inspect.Parameter.empty and p.name != "self"
        ]
        assert not bare, f"{call.__qualname__} says no type of {', '.join(bare)}"
        assert signature.return_annotation is not inspect.Signature.empty, call.__qualname__


def test_c_functions_have_signatures():
    for thing in (_core, _core.Graph, _core.Network, _core.Program):
        for name, call in vars(thing).items():
            if inspect.isbuiltin(call) or inspect.ismethoddescriptor(call):
                assert call.__text_signature__, f"{name} of {thing.__name__}"


def test_completion_shows_what_is_public():
    names = {name for name in dir(mdmt) if not name.startswith("__")}
    assert names == {*mdmt.__all__, *mdmt._SUBMODULES} - {"__version__"}
    assert all(getattr(mdmt, name) is not None for name in sorted(names))
