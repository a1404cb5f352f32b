"""The layers of the package: imports point down, lazy and TYPE_CHECKING imports included.

A module may import from its own layer and from those below it. No circle of modules, and no class name that
stands for two things.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onevision

ROOT = Path(onevision.__file__).parent

#: From top to bottom. A name is a package, or a module of the root; ``.`` is the facade.
LAYERS = (
    ("__main__",),
    ("cli",),
    (".",),
    ("serve", "batch", "watch"),
    ("named",),
    ("bench",),
    ("quant",),
    ("eval",),
    ("export",),
    ("proof",),
    ("planning",),
    ("runtime",),
    ("graphs",),
    ("native",),
    (
        "arrays",
        "errors",
        "files",
        "progress",
        "metrics",
        "bundle",
        "typed",
        "precisions",
        "models",
        "html",
        "extras",
        "_version",
    ),
)
HEIGHT = {name: -at for at, names in enumerate(LAYERS) for name in names}


@cache
def modules() -> dict[str, ast.Module]:
    """Parsed modules by dotted name."""
    parsed = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        parsed[name] = ast.parse(path.read_text(encoding="utf-8"))
    return parsed


@cache
def arrows() -> dict[str, set[str]]:
    """Modules that each module imports, wherever in its code."""
    known = modules()
    found: dict[str, set[str]] = {name: set() for name in known}
    for name, tree in known.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[name].update(alias.name for alias in node.names if alias.name in known)
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{name} has a relative import"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[name].update({whole if whole in known else node.module} & known.keys())
    return found


def layer(module: str) -> str:
    """The layer that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "."


def test_every_module_has_a_layer() -> None:
    assert {layer(module) for module in modules()} <= HEIGHT.keys()


def test_imports_point_down() -> None:
    upward = [
        f"{module} -> {other}"
        for module, others in arrows().items()
        for other in sorted(others)
        if layer(module) != layer(other) and not _below(layer(other), layer(module))
    ]
    assert upward == []


def _below(lower: str, upper: str) -> bool:
    """Whether a layer is below another; modules of the base are all on one level."""
    return HEIGHT[lower] < HEIGHT[upper] or HEIGHT[lower] == HEIGHT[upper] == min(HEIGHT.values())


def test_no_circle_of_modules() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle: {' -> '.join(error.args[1])}") from None


def test_class_names_have_one_meaning() -> None:
    """Classes, protocols and type aliases; an alias that repeats another's definition is a second home."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module)
            elif isinstance(node, ast.Assign) and _is_alias(node.value):
                homes.update({t.id: [*homes[t.id], module] for t in node.targets if isinstance(t, ast.Name)})
    twice = {name: where for name, where in homes.items() if len(where) > 1 and not name.startswith("_")}
    assert twice == {}


def _is_alias(value: ast.expr) -> bool:
    """Whether an assigned value is a type: ``Literal[...]``, ``Callable[...]``, a union."""
    return isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name) and value.value.id in {
        "Literal", "Callable", "Sequence", "Mapping", "tuple", "dict", "list",
    }  # fmt: skip
