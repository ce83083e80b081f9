"""Imports point one way, and only the profiler loads torch; tests lie as the package does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cspsched
from tests.support.places import ROOT as CHECKOUT

ROOT = Path(cspsched.__file__).parent

BASE = {"errors", "units", "resources", "executors"}
MAY_IMPORT = {
    "errors": set(),
    "units": set(),
    "resources": {"errors"},
    "executors": {"errors"},
    "problem": {"errors", "units"},
    "trace": {"problem"},
    "referee": {"problem", "compiled"},
    "costs": {"problem"},
    "compiled": {"problem"},
    "bounds": {"problem", "costs", "compiled"},
    "exact": {"problem", "referee", "costs", "compiled", "bounds"},
    "simulate": {"compiled", "problem"},
    "policies": {"problem", "compiled", "simulate"},
    "improve": {
        "problem",
        "referee",
        "costs",
        "compiled",
        "bounds",
        "exact",
        "simulate",
        "policies",
    },
    "cluster": {"problem", "costs", "trace", "simulate", "policies"},
    "search": {"problem", "costs", "trace", "simulate", "policies", "cluster"},
    "profiler": {"problem", "costs", "simulate", "policies"},
    "serving": {"problem", "costs", "trace"},
    "recording": {"referee", "problem", "costs", "trace", "simulate", "policies", "serving"},
    "studies": {
        "referee",
        "problem",
        "trace",
        "costs",
        "bounds",
        "exact",
        "simulate",
        "policies",
        "improve",
        "serving",
    },
    "unused": {"trace", "simulate", "policies"},
    "report": {
        "referee",
        "problem",
        "trace",
        "costs",
        "bounds",
        "improve",
        "studies",
        "serving",
    },
}
"""What each part may import beside itself and (from resources on up) the base; cli and the root may all."""

LATE = {"problem.result": {"referee"}, "studies.compare": {"report"}}
"""Imports of a method when it is called: a result asks the referee, which knows no result."""

EVERYTHING = {"", "__main__", "cli"}
"""The public names, the entry point and the command line stand above all others."""


def modules() -> list[tuple[str, ast.Module]]:
    """Dotted path below cspsched and syntax tree of every module."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imports_of(tree: ast.AST) -> set[str]:
    """Dotted names that a tree imports, anywhere in it; `from a import b` counts as a and as a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def parts_of(names: set[str]) -> set[str]:
    """Parts of cspsched (first name below it) among imported names."""
    known = {path.stem for path in ROOT.iterdir()}
    return {name.split(".")[1] for name in names if name.startswith("cspsched.")} & known


MODULES = modules()


def test_every_part_has_its_place():
    """A new part of cspsched must be given its layer here."""
    parts = {name.split(".")[0] for name, _ in MODULES}

    assert parts - set(MAY_IMPORT) - EVERYTHING == set()


def test_the_layers_have_no_cycle():
    """The table above is an order: a part that is imported imports nothing of the importer."""
    done: set[str] = set()
    while ready := {part for part, below in MAY_IMPORT.items() if below <= done} - done:
        done |= ready

    assert done == set(MAY_IMPORT)


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name or "cspsched" for name, _ in MODULES])
def test_imports_point_one_way(name, tree):
    """A module imports its own part and the layers below it."""
    part = name.split(".")[0]
    if part in EVERYTHING:
        return
    base = set() if part in BASE | {"problem"} else BASE
    upwards = parts_of(imports_of(tree)) - MAY_IMPORT[part] - base - {part} - LATE.get(name, set())

    assert upwards == set()


def test_the_command_line_is_imported_by_nobody():
    """Only the entry point knows the command line."""
    importers = {name for name, tree in MODULES if "cli" in parts_of(imports_of(tree))}

    assert {name for name in importers if not name.startswith("cli")} <= {"__main__"}


def test_the_referee_stands_alone():
    """Referee, history and metrics reach nothing but problem, errors, units, and how code is compiled."""
    trees = {f"cspsched.{name}": tree for name, tree in MODULES}
    reached, queue = set(), ["cspsched.referee.judge", "cspsched.referee.metrics"]
    while queue:
        module = queue.pop()
        if module in trees and module not in reached:
            reached.add(module)
            queue += imports_of(trees[module])

    parts = {module.split(".")[1] for module in reached - {"cspsched.compiled.jit"}}
    assert parts == {"referee", "problem", "errors", "units"}


@pytest.mark.parametrize(
    "package", ["problem", "compiled", "trace", "costs", "bounds", "simulate", "policies"]
)
def test_the_solver_is_loaded_by_the_exact_part_only(package):
    """OR-Tools is imported by nothing that the solver is checked with."""
    users = {
        name
        for name, tree in MODULES
        if name.split(".")[0] == package and any(used.startswith("ortools") for used in imports_of(tree))
    }

    assert users == set()


def test_only_the_profiler_may_import_torch():
    """Torch is an extra: no module outside the profiler names it in an import."""
    users = {
        name
        for name, tree in MODULES
        if any(used.split(".")[0] in ("torch", "triton") for used in imports_of(tree))
    }

    assert {name for name in users if name.split(".")[0] != "profiler"} == set()


COMPILED_FROM = {"policies": {"simulate"}}
"""Parts whose functions are compiled together with those of others."""
MARKS = {f"cspsched.compiled.jit.{mark}" for mark in ("inner", "merged", "outer", "allocating")}
MARKED = [(name, tree) for name, tree in MODULES if MARKS & imports_of(tree)]


@pytest.mark.parametrize(("name", "tree"), MARKED, ids=[name for name, _ in MARKED])
def test_compiled_code_is_from_few_parts(name, tree):
    """What compiled functions take, named tuples too, is of the parts that their name on disk covers."""
    part = name.split(".")[0]
    covered = {part, "compiled"} | COMPILED_FROM.get(part, set())

    assert parts_of(imports_of(tree)) - covered - {"problem"} - BASE == set()


def test_numba_is_imported_in_one_place():
    """How functions are compiled is said once, and only a compiled run loads it."""
    users = {
        name for name, tree in MODULES if any(used.split(".")[0] == "numba" for used in imports_of(tree))
    }

    assert users == {"compiled.jit"}


CHECKS = [(name, tree) for name, tree in MODULES if name.startswith("bounds.") and name.endswith("check")]
STATED = {"bounds.certificate", "bounds.parts.minorant", "bounds.parts.price_windows"}
"""What certificates are written in, which a check must read."""


@pytest.mark.parametrize(("name", "tree"), CHECKS, ids=[name for name, _ in CHECKS])
def test_a_check_shares_nothing_with_its_bound(name, tree):
    """Checks import other checks and what certificates state, and nothing that derives or chooses it."""
    modules = {module for module, _ in MODULES}
    used = {one.removeprefix("cspsched.") for one in imports_of(tree) if one.startswith("cspsched.bounds.")}
    others = {one for one in used & modules - STATED if one.rpartition(".")[2] not in ("check", "details")}

    assert others - {one.rpartition(".")[0] for one in modules} == set()


TESTS = CHECKOUT / "tests"
SHARED = {"oracles", "support"}
"""Slow twins, and helpers of more than one test file."""
OF_PROTOCOLS = {"_asdict", "_fields", "_make", "_replace", "_repr_html_"}
"""Of named tuples and of notebooks."""
TEST_FILES = [path.relative_to(TESTS).as_posix() for path in sorted(TESTS.rglob("*.py"))]


def private_names(tree: ast.AST) -> set[str]:
    """Names with one leading underscore that a tree takes from cspsched, or from an object but `self`."""
    names = {name.rpartition(".")[2] for name in imports_of(tree) if name.startswith("cspsched.")}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.Constant(value=str(text)) if text.startswith("cspsched.") and " " not in text:
                names.add(text.rpartition(".")[2])
    return {name for name in names - OF_PROTOCOLS if name.startswith("_") and not name.startswith("__")}


def test_tests_lie_in_folders_of_the_package():
    """A folder of tests is one of cspsched; a file at the top is about a module there, or about all."""
    folders = {name.split("/")[0] for name in TEST_FILES if "/" in name} - SHARED
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}

    assert folders - packages == set()
    assert [name for name in TEST_FILES if name.split("/")[0] in SHARED and "/test_" in name] == []


@pytest.mark.parametrize("name", TEST_FILES)
def test_tests_share_by_support_and_ask_for_public_names(name):
    """No test file imports another, and none uses a private name of the package."""
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    others = {used for used in imports_of(tree) if used.rpartition(".")[2].startswith("test_")}

    assert {used for used in others if used.startswith("tests.")} == set()
    assert private_names(tree) == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from cspsched.bounds.check import _share", {"_share"}),
        ("search.scheduler._instance", {"_instance"}),
        ("patch('cspsched.exact.race._stop', None)", {"_stop"}),
        ("self._own = row._replace(a=1).__class__", set()),
    ],
)
def test_private_names_are_found_where_they_are_used(code, found):
    """In imports, as attributes, and in the paths that `monkeypatch` takes; not on oneself or on tuples."""
    assert private_names(ast.parse(code)) == found


MOST_PARAMETERS = 7
"""More belong together, in a value with a name. A command of click gets every option by its name."""


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, without self and cls."""
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    rest = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return len(names) + len(rest) - (names[:1] in (["self"], ["cls"]))


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether click calls a function with the options of a command."""
    calls = [one.func for one in function.decorator_list if isinstance(one, ast.Call)]
    return any(isinstance(one, ast.Attribute) and one.attr == "command" for one in calls)


def test_functions_have_few_parameters():
    """Options and listeners come as values; so do the tables of compiled kernels."""
    many = {
        f"{name}.{node.name}": num_parameters(node)
        for name, tree in MODULES
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_command(node)
    }

    assert {name: count for name, count in many.items() if count > MOST_PARAMETERS} == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("def f(): ...", 0),
        ("def f(self, a, /, b, *c, d, **e): ...", 5),
        ("async def f(cls, *, a=1, b=2): ...", 2),
    ],
)
def test_every_kind_of_parameter_counts(text, count):
    """By place and by name, the rest too; not the object itself."""
    (function,) = ast.parse(text).body

    assert num_parameters(function) == count
