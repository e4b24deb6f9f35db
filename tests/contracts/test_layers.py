"""Who may import whom: the house as a graph."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from tests.contracts._tree import (
    PACKAGES,
    ROOMS,
    ROOT,
    attribute_chains,
    imports,
    name,
    report,
    sources,
    within,
)

BELOW = {
    "largeforge_ray": set(),
    "actors": {"largeforge_ray"},
    "serve_apps": {"actors", "largeforge_ray"},
    "train_jobs": {"actors", "largeforge_ray"},
}
# A room imports its own layer and those before it, never a later one.
LAYERS = (
    ("errors", "types"),
    ("config",),
    ("store", "data", "routing", "observe"),
    ("models",),
    ("train", "teach", "distill", "quantize"),
    ("evaluate", "sweep"),
    ("promote", "redteam"),
    ("flow",),
)
RAY_LIBRARIES = {
    "ray.serve": ("serve_apps",),
    "ray.tune": ("largeforge_ray/sweep",),
    "ray.data": ("largeforge_ray/teach", "largeforge_ray/evaluate"),
    "ray.train": ("largeforge_ray/train",),
}


def test_the_library_has_only_the_rooms_of_the_architecture() -> None:
    folders = {
        path.parent.name for path in sources("largeforge_ray") if path.parent.parent.name == "largeforge_ray"
    }
    assert folders <= set(ROOMS), f"unknown rooms: {sorted(folders - set(ROOMS))}"
    assert {room for layer in LAYERS for room in layer} == {*ROOMS, "errors", "types"}


def test_outer_folders_import_only_what_lies_below_them() -> None:
    outside = (*PACKAGES, "tests", "benchmarks", "cluster")
    report(
        [
            f"{name(path)}:{found.line}: {package} imports {found.target}"
            for package in PACKAGES
            for path in sources(package)
            for found in imports(path)
            if (top := found.target.split(".")[0]) in outside and top not in {package, *BELOW[package]}
        ]
    )


def test_library_layers_point_down() -> None:
    rank = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    report(
        [
            f"{name(path)}:{line}: {room} (layer {rank[room]}) imports {other} (layer {rank[other]})"
            for path, room, other, line in _room_imports()
            if rank[other] > rank[room]
        ]
    )


def test_library_rooms_have_no_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for _, room, other, _ in _room_imports():
        graph.setdefault(room, set()).add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        report([f"rooms import each other: {' -> '.join(error.args[1])}"])


def test_relative_imports_stay_in_their_folder() -> None:
    report(
        [
            f"{name(path)}:{found.line}: relative import leaves {path.parent.name}/; write {found.target}"
            for path in sources(*PACKAGES)
            for found in imports(path)
            if found.level > 1
        ]
    )


def test_each_ray_library_is_used_where_it_belongs() -> None:
    violations = []
    for path in sources(*PACKAGES):
        used = {(found.target, found.line) for found in imports(path)} | set(attribute_chains(path))
        violations += [
            f"{name(path)}:{line}: {library} is used in {' and '.join(homes)} only"
            for library, homes in RAY_LIBRARIES.items()
            for line in sorted({line for target, line in used if within(target, library)})
            if not name(path).startswith(homes)
        ]
    report(violations)


def _room_imports():
    """(file, its room, the other room it imports, line) for every import inside the library."""
    for path in sources("largeforge_ray"):
        room = path.relative_to(ROOT / "largeforge_ray").parts[0].removesuffix(".py")
        for found in imports(path):
            parts = found.target.split(".")
            other = parts[1] if parts[0] == "largeforge_ray" and len(parts) > 1 else room
            if room != other and {room, other} <= {*ROOMS, "errors", "types"}:
                yield path, room, other, found.line
