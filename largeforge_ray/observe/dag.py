"""The lineage as a picture: layers by distance from the sources, left to right (top to bottom on a phone).

The usual layered drawing: a node lies one layer after its furthest parent, an edge over several layers
bends through a small gap in each, and nodes are ordered by the mean position of their neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

from markupsafe import Markup

from largeforge_ray.observe import svg
from largeforge_ray.observe.data import Lineage, Node

SHORT_KEY = 8
SWEEPS = 6
TILE_HEIGHT, GAP, LANE = 56.0, 18.0, 14.0
"""px: a tile, the space between tiles of a layer, and the room an edge takes to pass through a layer."""
BOLD_PX = 8.6
"""Mean width of a character of 13 px bold text, on the wide side so that no name leaves its tile."""

Point = tuple[float, float]
Edge = tuple[str, str]
Item = str | Edge
"""What takes a place in a layer: a node by its key, or an edge that passes through."""


@dataclass(frozen=True, slots=True)
class _Size:
    """A tile's extent along the flow and across it, and the gap between layers, in px."""

    along: float
    across: float
    gap: float


def lineage_picture(lineage: Lineage, width: float) -> Markup:
    """Each artifact once, with an arrow from every parent. Grows beyond the width rather than overlap."""
    layers = layered(lineage)
    down = width < svg.WIDE * 0.7
    width -= 2  # added again to the canvas, for the outlines
    size = _size(layers, width, down)
    places = _places(layers, size)
    along = len(layers) * size.along + (len(layers) - 1) * size.gap
    across = max(v + _room(item, size) / 2 for (item, _), (_, v) in places.items())
    canvas = (max(across, width), along) if down else (max(along, width), across)
    shift = (max(width - across, 0) / 2, 0.0) if down else (max(width - along, 0) / 2, 0.0)
    parts = [_arrow(edge, layers, places, size, down, shift) for edge in lineage.edges]
    depth = _depths(lineage)
    for node in lineage.nodes:
        u, v = places[(node.key, depth[node.key])]
        x, y = (v - size.across / 2, u) if down else (u, v - size.across / 2)
        wide = size.across if down else size.along
        parts.append(_tile(node, x + shift[0], y + shift[1], wide))
    name = {node.key: node.name for node in lineage.nodes}
    said = "; ".join(f"{name[parent]} to {name[child]}" for parent, child in lineage.edges)
    label = f"Lineage of {len(name)} artifacts: {said or 'no edges'}"
    return svg.picture(canvas[0] + 2, canvas[1] + 2, label, *parts)


def layered(lineage: Lineage) -> list[list[Item]]:
    """Layers of node keys, and of edges (as key pairs) where they pass through a layer; few crossings."""
    depth = _depths(lineage)
    layers: list[list[Item]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for node in lineage.nodes:
        layers[depth[node.key]].append(node.key)
    for parent, child in lineage.edges:
        for between in range(depth[parent] + 1, depth[child]):
            layers[between].append((parent, child))
    links = _links(lineage.edges, depth)
    for sweep in range(SWEEPS):
        order = range(1, len(layers)) if sweep % 2 == 0 else range(len(layers) - 2, -1, -1)
        side = -1 if sweep % 2 == 0 else 1
        for index in order:
            place = {item: at for at, item in enumerate(layers[index + side])}
            layers[index].sort(key=lambda item: _mean(place[n] for n in links[(item, index, side)]))
    return layers


def _depths(lineage: Lineage) -> dict[str, int]:
    parents: dict[str, list[str]] = {node.key: [] for node in lineage.nodes}
    for parent, child in lineage.edges:
        parents[child].append(parent)
    depth: dict[str, int] = {}
    for key in TopologicalSorter(parents).static_order():
        depth[key] = max((depth[parent] + 1 for parent in parents[key]), default=0)
    return depth


def _links(edges: Iterable[Edge], depth: dict[str, int]) -> dict[tuple[Item, int, int], list[Item]]:
    """What an item of a layer is joined to in the layer before (-1) and after (1)."""
    links: dict[tuple[Item, int, int], list[Item]] = defaultdict(list)
    for edge in edges:
        stops = _stops(edge, depth[edge[0]], depth[edge[1]])
        for (item, layer), (after, next_layer) in pairwise(stops):
            links[(item, layer, 1)].append(after)
            links[(after, next_layer, -1)].append(item)
    return links


def _stops(edge: Edge, first: int, last: int) -> list[tuple[Item, int]]:
    return [(edge[0], first), *((edge, layer) for layer in range(first + 1, last)), (edge[1], last)]


def _mean(places: Iterable[int]) -> float:
    found = list(places)
    return sum(found) / len(found) if found else 0.0


def _size(layers: Sequence[Sequence[object]], width: float, down: bool) -> _Size:
    if down:
        most = max(sum(isinstance(item, str) for item in layer) for layer in layers)
        return _Size(TILE_HEIGHT, min(max((width - (most - 1) * GAP) / most, 104), 150), 34)
    count = len(layers)
    tile = min(max((width - (count - 1) * 34) / count, 112), 150)
    gap = min(max((width - count * tile) / max(count - 1, 1), 34), 72)
    return _Size(tile, TILE_HEIGHT, gap)


def _room(item: Item, size: _Size) -> float:
    return size.across if isinstance(item, str) else LANE


def _places(layers: Sequence[Sequence[Item]], size: _Size) -> dict[tuple[Item, int], Point]:
    """Item and layer -> start along the flow, centre across it; every layer centred."""
    extents = [sum(_room(item, size) for item in layer) + GAP * (len(layer) - 1) for layer in layers]
    places = {}
    for index, layer in enumerate(layers):
        at = (max(extents) - extents[index]) / 2
        for item in layer:
            room = _room(item, size)
            places[(item, index)] = (index * (size.along + size.gap), at + room / 2)
            at += room + GAP
    return places


def _arrow(
    edge: Edge,
    layers: Sequence[Sequence[Item]],
    places: dict[tuple[Item, int], Point],
    size: _Size,
    down: bool,
    shift: Point,
) -> Markup:
    where = {item: index for index, layer in enumerate(layers) for item in layer if isinstance(item, str)}
    stops = [places[stop] for stop in _stops(edge, where[edge[0]], where[edge[1]])]

    def at(u: float, v: float) -> str:
        x, y = (v, u) if down else (u, v)
        return f"{x + shift[0]:.1f},{y + shift[1]:.1f}"

    path = [f"M{at(stops[0][0] + size.along, stops[0][1])}"]
    for (u, v), (next_u, next_v) in pairwise(stops):
        begin, bend = u + size.along, (next_u - u - size.along) / 2
        path.append(f"C{at(begin + bend, v)} {at(next_u - bend, next_v)} {at(next_u, next_v)}")
        if (next_u, next_v) != stops[-1]:
            path.append(f"L{at(next_u + size.along, next_v)}")
    u, v = stops[-1]
    head = f"M{at(u - 6, v - 4)}L{at(u, v)}L{at(u - 6, v + 4)}"
    return svg.element("path", d=" ".join(path) + head, class_="edge")


def _tile(node: Node, x: float, y: float, width: float) -> Markup:
    known = node.kind if node.kind in ("dataset", "adapter", "model", "outcomes", "router") else "other"
    note = {"cached": ", already in the store", "absent": ", not made yet"}.get(node.state, "")
    room = int((width - 24) / BOLD_PX)
    parts = [
        svg.title(f"{node.kind} ‘{node.name}’{note}\n{node.key}"),
        svg.box(x + 1, y + 1, width - 2, TILE_HEIGHT - 2, "tile", radius=5),
        svg.box(x + 1, y + 1, 5, TILE_HEIGHT - 2, f"stripe kind-{known}", radius=2),
        svg.text(x + 14, y + 17, node.kind, "kind"),
        svg.text(x + 14, y + 33, svg.clip(node.name, room), "name"),
        svg.text(x + 14, y + 48, node.key[:SHORT_KEY], "key"),
    ]
    return svg.element("g", *parts, class_=f"node {node.state}")
