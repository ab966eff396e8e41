"""Change lines of the core at random and see whether the tests notice: what no test notices, no test says.

    python3 scripts/mutate.py --count 200 --log runs/mutants.jsonl      # goes on where the log stops
    python3 scripts/mutate.py --log runs/mutants.jsonl --again          # what was alive, with today's tests
    python3 scripts/mutate.py --count 20 --list                         # shows the changes and runs nothing

A change is one of: another comparison, operator, constant or truth value; a condition turned round; a statement, a
`clamp` or another guard left out; a slice without its beginning. Each is written into a copy of the tree, and the tests
of that file are run there with -x, without those that fail before any change. torch, diffusers and transformers are
imported once; every change is tried in a fork of that process, on one core. The exit status is 1 if more than --keep
percent are alive. Not part of the suite.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOCA, FEATURE = "src-main/goca", "install/diffusion_feature"

METHOD = ("aggregation", "rescaling", "segmenter", "families_recorded")
PROMPTS = ("prompts_grammar", "prompts_released", "prompts_annotate", "prompts_learnt")
METRIC = ("evaluation_decision", "evaluation_mean_iou", "evaluation_metrics")
TAP = ("aggregation", "families_recorded", "extractor", "families")

# file of the core -> the tests that are to notice a change in it, those that take least time first
CORE: dict[str, tuple[str, ...]] = {
    f"{GOCA}/heads.py": METHOD,
    f"{GOCA}/layers.py": METHOD,
    f"{GOCA}/aggregation.py": (*METHOD, "memory"),
    f"{GOCA}/waiting.py": ("aggregation", "memory", "segmenter"),
    f"{GOCA}/resizing.py": METHOD,
    f"{GOCA}/rescaling.py": ("rescaling", "segmenter", "families_recorded"),
    f"{GOCA}/views.py": ("views",),
    f"{GOCA}/prompts/alignment.py": PROMPTS,
    f"{GOCA}/prompts/tokens.py": PROMPTS,
    f"{GOCA}/prompts/grammar.py": PROMPTS,
    f"{GOCA}/prompts/captioning.py": (*PROMPTS, "prompts_captions", "captioner"),
    f"{GOCA}/evaluation/decision.py": METRIC,
    f"{GOCA}/evaluation/mean_iou.py": METRIC,
    f"{GOCA}/evaluation/upsample.py": METRIC,
    f"{GOCA}/evaluation/metrics.py": METRIC,
    f"{GOCA}/refine/affinity.py": ("rescaling", "refine"),
    f"{GOCA}/refine/merging.py": ("refine",),
    f"{GOCA}/refine/pamr.py": ("refine",),
    f"{GOCA}/refine/prototypes.py": ("refine",),
    f"{GOCA}/refine/matching.py": ("refine",),
    f"{GOCA}/guidance/rate.py": ("guidance",),
    f"{FEATURE}/attention.py": TAP,
    f"{FEATURE}/tap.py": TAP,
    f"{FEATURE}/noise.py": ("families_settings", "schedulers", "extractor", "families_recorded", "families"),
    f"{FEATURE}/latents.py": ("extractor", "families_recorded", "lent", "families"),
}

# constants that say how much is done at once, or how far a bound is from what it guards: no result depends on them
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


# --- changes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One line of one file, changed: the text between two offsets becomes another."""

    file: str
    line: int
    start: int  # in bytes
    end: int
    before: str
    after: str
    place: str  # the line's text, which of the file's lines with this text it is, and where in it the change begins

    @property
    def key(self) -> str:
        """Says which change it is, also when other lines of the file are written anew."""
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
    """All changes of a file, in its order."""
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
    """The nodes that say what is computed: no annotations, docstrings, messages, decorators or assertions."""
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


def _variants(node: ast.AST, text) -> Iterator[str]:
    """What may stand in a node's place."""
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


def sample(count: int, seed: int, only: list[str]) -> list[Change]:
    """`count` lines of the core at random, and of each a change at random.

    The same lines come first whatever the count, and stay the same when others are written.
    """
    by_line: dict[str, list[Change]] = {}
    for file in CORE:
        if not only or any(part in file for part in only):
            for change in changes(file):
                by_line.setdefault(f"{file}:{change.place.rpartition(':')[0]}", []).append(change)

    def drawn(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text}".encode()).digest()

    chosen = sorted(by_line, key=drawn)[:count]
    return [min(by_line[line], key=lambda change: drawn(f"{change.before}:{change.after}")) for line in chosen]


# --- trying them ------------------------------------------------------------------------------------------------------


def copy_tree(folder: Path) -> Path:
    """What the tests need of the repository, in a folder of its own."""
    kept = ("configs", "install", "src-main", "src-additional", "scripts", "tests", "gpt_output", "docs")
    for name in kept:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "setup.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def prepare() -> None:
    """Import what takes long and is never changed, once."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GOCA_GOLDENS": "/nonexistent",
    }
    for name in ("torch", "diffusers", "transformers", "hypothesis", "scipy.optimize", "hydra", "pytest"):
        importlib.import_module(name)
    import diffusers
    import transformers

    for name in (
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "PixArtAlphaPipeline",
        "FluxPipeline",
        "HunyuanDiTPipeline",
        "UNet2DConditionModel",
        "AutoencoderKL",
    ):
        getattr(diffusers, name)
    for name in ("CLIPTextModel", "T5EncoderModel", "BertModel", "AutoTokenizer", "T5Tokenizer", "BertTokenizer"):
        getattr(transformers, name)


def attempt(folder: Path, options: list[str], tests: tuple[str, ...], limit: float, output: Path) -> tuple[str, float]:
    """Run pytest in the copy, in a fork: "killed", "alive" or "too long", and the seconds that it took."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_tests(folder, options, [f"tests/test_{name}.py" for name in tests], output)
    while time.monotonic() - began < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return ("alive" if status == 0 else "killed"), time.monotonic() - began
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too long", time.monotonic() - began


def failures(output: Path) -> list[str]:
    """The tests that failed, as pytest names them."""
    lines = output.read_text(errors="replace").splitlines()
    return [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]


def _run_tests(folder: Path, options: list[str], files: list[str], output: Path) -> None:
    """In the fork; does not return."""
    code = 3
    try:
        os.setsid()  # its own children end with it
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        places = [str(folder / "src-main"), str(folder / "install"), str(folder / "tests")]
        os.environ["PYTHONPATH"] = os.pathsep.join(places[:2])
        sys.path[:0] = places
        import pytest
        from hypothesis import Phase, settings

        settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate], database=None)
        own = [
            "-q",
            "-rfE",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "--tb=no",
            "--basetemp",
            str(folder / "tmp"),
            "--hypothesis-seed=0",
            "--hypothesis-profile=unshrunk",
        ]
        for file in files:  # one after the other: most changes are noticed before the others are even read
            code = int(pytest.main([*own, *options, file]))
            if code:
                break
        import goca

        assert Path(goca.__file__).is_relative_to(folder), goca.__file__
    finally:
        sys.stdout.flush()
        os._exit(code)


def try_all(todo: list[Change], log: Path, limit: float) -> None:
    """Try the changes one after the other; each result is a line of the log."""
    from tqdm import tqdm

    with tempfile.TemporaryDirectory(prefix="mutate-") as place:
        folder, output = copy_tree(Path(place) / "tree"), Path(place) / "output.txt"
        without: dict[str, list[str]] = {}  # name of tests -> what is left out of them
        for change in tqdm(todo, unit="change"):
            tests, file = CORE[change.file], folder / change.file
            for name in tests:
                if name not in without:
                    attempt(folder, [], (name,), limit, output)
                    without[name] = failures(output)
                    if without[name]:
                        tqdm.write(f"fails before any change: {' '.join(without[name])}")
            left_out = [argument for name in tests for test in without[name] for argument in ("--deselect", test)]
            source = file.read_bytes()
            file.write_bytes(source[: change.start] + change.after.encode() + source[change.end :])
            result, seconds = attempt(folder, ["-x", *left_out], tests, limit, output)
            file.write_bytes(source)
            record = asdict(change) | {"key": change.key, "result": result, "seconds": round(seconds, 1)}
            with log.open("a") as lines:
                lines.write(json.dumps(record | {"by": failures(output)[:1]}) + "\n")
            if result == "alive":
                tqdm.write(f"alive  {change}")


def read_log(log: Path) -> dict[str, dict]:
    """Key -> its last result."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {record["key"]: record for record in map(json.loads, lines)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="lines to be changed (200)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (0)")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "mutants.jsonl", help="results, a line each")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", help="only files with this in the name")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one change (600)")
    parser.add_argument("--keep", type=float, default=3, help="percent that may stay alive (3)")
    parser.add_argument("--again", action="store_true", help="try what was alive once more, and nothing else")
    parser.add_argument("--list", action="store_true", help="show the changes, run nothing")
    given = parser.parse_args()
    chosen = sample(given.count, given.seed, given.only)
    if given.list:
        print("\n".join(map(str, chosen)))
        return 0
    given.log.parent.mkdir(parents=True, exist_ok=True)
    known = read_log(given.log)
    if given.again:
        todo = [change for change in chosen if known.get(change.key, {}).get("result") == "alive"]
    else:
        todo = [change for change in chosen if change.key not in known]
    if todo:
        prepare()
        try_all(todo, given.log, given.limit)
    known = read_log(given.log)
    tried = [change for change in chosen if change.key in known]
    results = Counter(known[change.key]["result"] for change in tried)
    alive = [change for change in tried if known[change.key]["result"] == "alive"]
    print(f"{len(tried)} changes: {', '.join(f'{number} {result}' for result, number in sorted(results.items()))}")
    print("\n".join(map(str, alive)))
    return int(100 * len(alive) > given.keep * len(tried))


if __name__ == "__main__":
    sys.exit(main())
