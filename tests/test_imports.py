"""How the code is laid out: no import cycle between modules, and no file of more than 300 lines."""

import ast
from pathlib import Path

import pytest
from commands import ROOT

SOURCES = {"goca": ROOT / "src-main", "diffusion_feature": ROOT / "install"}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file."""
    source = SOURCES[package]
    found = {}
    for file in (source / package).rglob("*.py"):
        name = ".".join(file.relative_to(source).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = file
    return found


def statements(body):
    """Statements that run on import: not those of functions, nor those under `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            for field in ("body", "orelse", "handlers", "finalbody"):
                yield from statements(getattr(node, field, []))
        elif isinstance(node, ast.ExceptHandler):
            yield from statements(node.body)
        else:
            yield node


def imports(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The known modules that a module imports by name."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {full if (full := f"{base}.{alias.name}") in known else base for alias in node.names}
    return (found & set(known)) - {name}


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """A cycle of a directed graph, first node repeated at the end; None without one."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for following in sorted(graph[node]):
            if found := visit(following, [*path, node]):
                return found
        done.add(node)
        return None

    return next((found for node in sorted(graph) if (found := visit(node, []))), None)


@pytest.mark.parametrize("package", SOURCES)
def test_no_import_cycles(package):
    known = modules(package)
    graph = {name: imports(name, file, known) for name, file in known.items()}
    assert sum(map(len, graph.values())) > len(graph)  # imports were read
    found = cycle(graph)
    assert found is None, " -> ".join(found or [])


def test_a_cycle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_imports_for_type_checkers_and_inside_functions_do_not_count(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom p import two\nif TYPE_CHECKING:\n    import p.three\n"
        "def f():\n    import p.four\ntry:\n    from . import five\nexcept ImportError:\n    from .six import x\n"
    )
    known = {f"p.{name}": file for name in ("one", "two", "three", "four", "five", "six")}
    assert imports("p.one", file, known) == {"p.two", "p.five", "p.six"}


LONGEST = 300  # lines


def test_no_file_is_longer_than_a_reader_can_hold():
    folders = ("install", "src-main", "src-additional", "scripts", "tests", "examples")
    lines = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n")
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(lines) > 300
    longer = {name: count for name, count in lines.items() if count > LONGEST}
    assert not longer, f"split by subject what has more than {LONGEST} lines: {longer}"
