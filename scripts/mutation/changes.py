"""Small changes to Python source: another comparison, operator, constant or call, or a statement left out."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Constants that set chunk sizes and error bounds: no result depends on them.
SPARED = {
    "CHUNK_BYTES",
    "LARGE_CHUNK",
    "SHORT_ROW",
    "REBUILT_ROWS",
    "REBUILT_WITHIN",
    "ROWS",
    "POINTS",
    "LARGE",
    "BLOCK",
    "TILE",
    "LINE",
    "CHUNK",
    "UNLIMITED",
    "STEADY",
}


@dataclass(frozen=True)
class Change:
    """One change to one line of a file: the text between two offsets is replaced."""

    file: str
    line: int
    start: int  # in bytes
    end: int
    before: str
    after: str
    place: str  # the line's text, which of the file's lines with this text it is, and where in it the change begins

    @property
    def key(self) -> str:
        """Identifies the change, also after other lines of the file have changed."""
        return f"{self.file}:{self.place}:{self.before}:{self.after}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {' '.join(self.before.split())}  ->  {' '.join(self.after.split())}"


COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.LShift: ">>",
}
CALLS = {
    "max": "min",
    "min": "max",
    "amax": "amin",
    "amin": "amax",
    "sum": "max",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "maximum": "minimum",
    "minimum": "maximum",
    "zeros": "ones",
    "ones": "zeros",
    "find": "rfind",
    "argmax": "argmin",
}
SILENT = (ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
GUARDS = {"clamp", "clamp_", "sqrt", "abs", "nan_to_num", "lower", "strip", "removesuffix", "unique", "flip"}
WRAPPERS = {"sorted", "reversed", "abs", "set"}


def changes(file: str) -> list[Change]:
    """All changes of a file, in source order."""
    source = (ROOT / file).read_bytes()
    written = source.decode().splitlines()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def place(node: ast.AST) -> tuple[int, int]:
        return lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(node: ast.AST) -> str:
        start, end = place(node)
        return source[start:end].decode()

    found = []
    for node in _live(ast.parse(source)):
        variants = [(node, after) for after in _variants(node, text)]
        if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.BoolOp):
            variants.append((node.test, f"(not {text(node.test)})"))
        for changed, after in variants:
            start, end = place(changed)
            number = source.count(b"\n", 0, start)
            line = written[number]
            where = f"{line}:{written[: number + 1].count(line)}:{start - lines[number]}"
            found.append(Change(file, number + 1, start, end, text(changed), after, where))
    return sorted(set(found), key=lambda change: (change.start, change.end, change.after))


def _live(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that affect results: no annotations, docstrings, messages, decorators or assertions."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_ignores"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, SILENT):
                continue
            if isinstance(node, ast.Assign) and _names(node.targets[0]) & SPARED:
                continue
            if hasattr(node, "lineno"):
                yield node
            if not isinstance(node, ast.Raise):
                yield from _live(node)


def _names(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _variants(node: ast.AST, text: Callable[[ast.AST], str]) -> Iterator[str]:
    """Replacements for a node."""
    match node:
        case ast.Compare(left, [operator], [right]) if type(operator) in COMPARISONS:
            yield f"{text(left)} {COMPARISONS[type(operator)]} {text(right)}"
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            yield f"({text(left)} {OPERATORS[type(operator)]} {text(right)})"
            if isinstance(operator, ast.Add | ast.Sub | ast.Mult):
                yield f"({text(left)})"
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield f"({text(operand)})"
        case ast.BoolOp(operator, values):
            joint = " or " if isinstance(operator, ast.And) else " and "
            yield f"({joint.join(f'({text(value)})' for value in values)})"
        case ast.IfExp(test, body, orelse):
            yield f"({text(orelse)} if {text(test)} else {text(body)})"
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() as value):
            yield str(value + 1)
        case ast.Constant(float() as value):
            yield repr(2 * value if value else 1.0)
        case ast.Call(ast.Attribute(owner, name)):
            if name in GUARDS:
                yield text(owner)
            if name in CALLS:
                yield text(owner) + text(node).removeprefix(text(owner)).replace(name, CALLS[name], 1)
        case ast.Call(ast.Name(name), [first, *_]):
            if name in WRAPPERS:
                yield text(first)
            if name in CALLS:
                yield text(node).replace(name, CALLS[name], 1)
        case ast.Slice(ast.AST(), upper):
            yield f":{text(upper) if upper else ''}"
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
            yield "pass"
        case ast.Expr(ast.Call()):
            yield "pass"
