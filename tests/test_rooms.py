"""The house keeps its rooms: who imports whom, and what a start loads."""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from .processes import in_a_new_process

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("dclip", "pipeline")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

INNER_IMPORTS = 49
"""Imports inside functions, of both packages: a start-up cost or an extra, each with its reason."""

QUOTED = 33
"""Annotations in quotes: what a class calls itself, where it does so before it is there."""

Function = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when a module is imported: branches are entered, functions are not."""
    for one in body:
        if isinstance(one, ast.If) and ast.unparse(one.test).endswith("TYPE_CHECKING"):
            yield from statements(one.orelse)
            continue
        yield one
        if not isinstance(one, Function):
            for name in ("body", "orelse", "finalbody"):
                yield from statements(getattr(one, name, []))
            for handler in getattr(one, "handlers", []):
                yield from statements(handler.body)


def imported(one: ast.AST) -> set[str]:
    """Modules of ours that an import statement names."""
    if isinstance(one, ast.Import):
        return {alias.name for alias in one.names} & FILES.keys()
    if isinstance(one, ast.ImportFrom):
        names = {f"{one.module}.{alias.name}" for alias in one.names}
        return (names if names <= FILES.keys() else {*names, str(one.module)}) & FILES.keys()
    return set()


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; empty if there is none."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        rings = (follow(other, [*way, name]) for other in sorted(edges[name]))
        found = next(filter(None, rings), [])
        done.add(name)
        return found

    return next(filter(None, (follow(name, []) for name in sorted(edges))), [])


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges = {
        name: set(chain.from_iterable(map(imported, statements(tree.body)))) - {name}
        for name, tree in TREES.items()
    }
    assert sum(map(len, edges.values())) > 3 * len(edges)  # they are seen
    assert cycle(edges | {"pipeline.a": {"pipeline.b"}, "pipeline.b": {"pipeline.a"}})
    assert not cycle(edges)


def test_the_library_does_not_import_the_pipeline_and_what_is_shared_imports_no_stage() -> None:
    for name, tree in TREES.items():
        for one in ast.walk(tree):
            for other in imported(one):
                said = f"{name} imports {other}, line {getattr(one, 'lineno', 0)}"
                assert not (name.startswith("dclip") and other.startswith("pipeline")), said
                is_stage = other.startswith("pipeline.stages.")
                assert not is_stage or name == "pipeline.stages.run", said


def loaded(first: str) -> set[str]:
    """Packages of others that importing a module of ours imports, where no branch is left out."""
    reached, others = [first], set()
    for name in reached:
        for one in statements(TREES[name].body):
            reached += sorted(imported(one) - set(reached))
            if isinstance(one, ast.Import):
                others |= {alias.name.partition(".")[0] for alias in one.names}
            elif isinstance(one, ast.ImportFrom):
                others.add(str(one.module).partition(".")[0])
    assert "torch" in others
    return others


def test_a_worker_that_makes_shards_loads_no_mlflow_and_no_ray_of_its_own() -> None:
    assert not {"ray", "mlflow", "matplotlib"} & loaded("pipeline.work.shard_maker")


@pytest.mark.parametrize("name", ["workers", "trials"])
def test_a_process_that_trains_leaves_records_and_pictures_to_its_driver(name: str) -> None:
    assert not {"mlflow", "matplotlib"} & loaded(f"pipeline.work.{name}")


def test_planning_loads_neither_torch_nor_ray() -> None:
    stages = sorted(name for name in FILES if name.startswith("pipeline.stages."))
    assert len(stages) > 8
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for name in {stages!r}:\n"
        "    import_module(name)\n"
        "    heavy = {'torch', 'ray', 'mlflow', 'matplotlib', 'open_clip'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    in_a_new_process(code)


def test_what_ray_reads_of_the_environment_is_there_before_ray_is_imported() -> None:
    """By whichever module a process comes to Ray first; some of it is read once and never again."""
    first = sorted(
        name
        for name, tree in TREES.items()
        if any(
            (isinstance(one, ast.ImportFrom) and str(one.module).partition(".")[0] == "ray")
            or (
                isinstance(one, ast.Import)
                and {a.name.partition(".")[0] for a in one.names} & {"ray"}
            )
            for one in statements(tree.body)
        )
    )
    assert len(first) > 3
    code = (
        "import os, sys\nfrom importlib import import_module\n"
        "class Stop(Exception): pass\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ray':\n"
        "            raise Stop\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"for name in {first!r}:\n"
        "    for known in [known for known in sys.modules if known.startswith('pipeline')]:\n"
        "        del sys.modules[known]\n"
        "    os.environ.pop('RAY_worker_niceness', None)\n"
        "    try:\n"
        "        import_module(name)\n"
        "    except Stop:\n"
        "        assert os.environ['RAY_worker_niceness'] == '0', name\n"
        "    else:\n"
        "        raise AssertionError(f'{name} does not import ray')\n"
    )
    in_a_new_process(code)


def test_imports_stand_at_the_top_and_annotations_are_not_quoted() -> None:
    inner, quoted = [], []
    for name, tree in TREES.items():
        lines = set()
        for function in ast.walk(tree):
            if isinstance(function, Function):
                found = (
                    one
                    for one in ast.walk(function)
                    if isinstance(one, ast.Import | ast.ImportFrom)
                )
                lines |= {one.lineno for one in found}
        inner += [f"{name}:{line}" for line in sorted(lines)]
        for one in ast.walk(tree):
            hints = [getattr(one, "annotation", None), getattr(one, "returns", None)]
            quoted += [
                f"{name}:{hint.lineno} {hint.value}"
                for hint in hints
                if isinstance(hint, ast.Constant) and isinstance(hint.value, str)
            ]
    assert len(inner) <= INNER_IMPORTS, inner
    assert len(quoted) <= QUOTED, quoted
