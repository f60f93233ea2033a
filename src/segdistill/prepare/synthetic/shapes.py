"""Things that do not move along a synthetic street: facades, walls, fences, plants, poles, lights and signs.

Each function returns the shape and the look to paint (see canvas.py). Colours are drawn per instance, and
from overlapping ranges: a wall is plastered like a house, a tree trunk is as thin as a pole, a sign is as red as a car.
"""

from __future__ import annotations

import numpy as np

from segdistill.prepare.synthetic.canvas import NOTHING, SEE_THROUGH, Look, Shape, look, noise

STATIC, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION = 4, 11, 12, 13, 17, 19, 20, 21

Drawn = tuple[Shape, Look]


def jitter(rng: np.random.Generator, rgb: np.ndarray, spread: float = 0.08) -> np.ndarray:
    """Return the colour (3,) moved a little: brightness and, less, hue."""
    moved = rgb * rng.uniform(1 - 2 * spread, 1 + 2 * spread) + rng.normal(0, spread / 3, 3)
    return np.minimum(np.maximum(moved, 0.02), 1)


def blank(u: np.ndarray, v: np.ndarray, part: int = NOTHING) -> np.ndarray:
    """Return the parts (h, w) of a surface that is all one part."""
    return np.full(np.broadcast_shapes(u.shape, v.shape), part, np.uint8)


def put(parts: np.ndarray, part: int, where: np.ndarray) -> None:
    np.copyto(parts, np.uint8(part), where=where)


def capsule(u, v, start: tuple[float, float], end: tuple[float, float], radius_m: float) -> np.ndarray:
    """Return the mask (h, w) of the points within `radius_m` of a line segment: limbs, tubes, heads."""
    (u0, v0), (u1, v1) = start, end
    du, dv = u1 - u0, v1 - v0
    if du == 0:  # upright, the most frequent: rows and columns stay apart, which is far cheaper
        return (u - u0) ** 2 + (v - np.minimum(np.maximum(v, v0), v1)) ** 2 <= radius_m**2
    along = ((u - u0) * du + (v - v0) * dv) * (1 / (du * du + dv * dv))
    along = np.minimum(np.maximum(along, 0), 1)
    return (u - u0 - along * du) ** 2 + (v - v0 - along * dv) ** 2 <= radius_m**2


def facade(rng: np.random.Generator, rgb: np.ndarray, height_m: float, lamps_lit: bool) -> Drawn:
    """Draw a house front: windows in bays and storeys, a ground floor with or without shops, a cornice."""
    bay_m, storey_m, base_m = rng.uniform(1.8, 3.8), rng.uniform(2.7, 3.6), rng.uniform(3.0, 4.2)
    window_u, window_v = rng.uniform(0.35, 0.85), rng.uniform(0.4, 0.75)
    shop, brick, at = rng.random() < 0.45, rng.random() < 0.4, int(rng.integers(1 << 16))
    wall = jitter(rng, rgb)
    glass = rng.uniform(0.1, 0.4) * np.array([0.85, 0.95, 1.05]) + 0.25 * wall * rng.random()
    parts_rgb = [wall, glass, wall * rng.uniform(0.6, 1.25), rng.uniform(0.1, 0.8, 3), np.array([1.0, 0.82, 0.5])]
    finish = look(BUILDING, [(BUILDING, np.clip(rgb, 0, 1)) for rgb in parts_rgb])

    def shape(u, v):
        parts = blank(u, v, 2)
        bay, storey = u / np.float32(bay_m), (v - np.float32(base_m)) / np.float32(storey_m)
        in_bay, in_storey = abs(bay - np.floor(bay) - 0.5), abs(storey - np.floor(storey) - 0.5)
        upper = (v > base_m) & (v < height_m - 0.5)
        put(parts, 4, upper & (in_bay < window_u / 2 + 0.06) & (in_storey < window_v / 2 + 0.05))
        pane = upper & (in_bay < window_u / 2) & (in_storey < window_v / 2)
        put(parts, 3, pane)
        if lamps_lit:
            put(parts, 6, pane & (noise(bay, storey, 1.0, at=at) > 0.6))
        if shop:
            put(parts, 3, (in_bay < 0.42) & (v > 0.5) & (v < base_m - 0.9))
            put(parts, 5, (v > base_m - 0.8) & (v < base_m - 0.2))  # the name board: coloured, yet building
        else:
            put(parts, 3, (in_bay < window_u / 2) & (abs(v - base_m * 0.55) < 0.6))
        put(parts, 4, v > height_m - 0.5)
        shade = 1 + 0.08 * noise(u, v, 0.2, "rough", at)
        if brick:
            shade = shade - 0.1 * ((v * np.float32(2.5)) % 1 < 0.2)
        return parts, shade * np.minimum(0.75 + 0.12 * v, 1)

    return shape, finish


def wall(rng: np.random.Generator, rgb: np.ndarray, height_m: float) -> Drawn:
    """Draw a free-standing wall: plaster or brick of a house without windows, sometimes capped or painted on."""
    at, brick, panel_m = int(rng.integers(1 << 16)), rng.random() < 0.5, rng.uniform(2, 5)
    base = jitter(rng, rgb, 0.1)
    finish = look(WALL, [(WALL, base), (WALL, base * rng.uniform(0.6, 1.1)), (WALL, rng.uniform(0.1, 0.8, 3))])

    def shape(u, v):
        parts = blank(u, v, 2)
        put(parts, 3, (v > height_m - 0.18) | (u % np.float32(panel_m) < 0.12))
        put(parts, 4, (noise(u, v, 0.08, "clouds", at) > 1.9) & (v < height_m * 0.7))  # graffiti
        shade = 0.95 + 0.09 * noise(u, v, 0.2, "rough", at)
        if brick:
            shade = shade - 0.1 * ((v * np.float32(2.5)) % 1 < 0.2)
        return parts, shade

    return shape, finish


def fence(rng: np.random.Generator, rgb: np.ndarray, height_m: float) -> Drawn:
    """Draw railings or mesh that one sees through, or planks; label it as a whole, as annotators do."""
    pitch_m, bar_m, post_m = rng.uniform(0.2, 0.5), rng.uniform(0.05, 0.1), rng.uniform(2, 3)
    planks, at = rng.random() < 0.35, int(rng.integers(1 << 16))
    metal = jitter(rng, rgb * rng.choice([0.25, 0.5, 0.9]), 0.1)
    finish = look(FENCE, [(FENCE, metal), (FENCE, metal * 0.75)])

    def shape(u, v):
        parts = blank(u, v, 2 if planks else SEE_THROUGH)
        put(parts, 3 if planks else 2, u % np.float32(pitch_m) < bar_m)
        put(parts, 2, (v > height_m - 0.1) | (abs(v - 0.25) < 0.06))
        put(parts, 3, u % np.float32(post_m) < 0.12)
        return parts, 0.95 + 0.1 * noise(u, v, 0.15, at=at)

    return shape, finish


def foliage(rng: np.random.Generator, rgb: np.ndarray, width_m: float, height_m: float, trunk_m: float) -> Drawn:
    """Draw a crown on a trunk (trunk_m > 0) or a bush or hedge that sits on the ground (trunk_m = 0)."""
    at, trunk_radius_m = int(rng.integers(1 << 16)), rng.uniform(0.08, 0.22)
    ragged, leaf_m = rng.uniform(0.15, 0.4), rng.uniform(0.12, 0.2)
    green = jitter(rng, rgb, 0.12)
    bark = rng.uniform(0.12, 0.4) * np.array([1.0, 0.9, 0.8])
    finish = look(VEGETATION, [(VEGETATION, c) for c in (green, green * 0.6, np.clip(green * 1.3, 0, 1), bark)])
    centre_v, reach_v = (trunk_m + height_m) / 2, (height_m - trunk_m) / 2
    if trunk_m == 0:
        centre_v, reach_v = 0.0, height_m

    def shape(u, v):
        parts = blank(u, v)
        if trunk_m:
            put(parts, 5, (abs(u - width_m / 2) < trunk_radius_m) & (v < centre_v))
        hills = noise(u, v, 0.08, "clouds", at)
        leaves = noise(u, v, leaf_m, at=at)
        power = 2 if trunk_m else 4
        radius = ((u - width_m / 2) / (width_m / 2)) ** power + ((v - centre_v) / reach_v) ** power
        inside = radius + ragged * hills < 0.85
        put(parts, 2, inside)
        put(parts, 3, inside & (leaves + hills < -0.6))
        put(parts, 4, inside & (leaves + hills > 1.3))
        put(parts, SEE_THROUGH, inside & (leaves > 1.2) & (radius > 0.5))
        return parts, 0.75 + (0.18 / reach_v) * (v - centre_v) + 0.12 * hills

    return shape, finish


def pole(rng: np.random.Generator, label: int = POLE) -> Drawn:
    """Draw a plain post: grey, dark green, galvanised or wooden."""
    rgb = rng.uniform(0.1, 0.6) * rng.uniform(0.85, 1.1, 3)
    finish = look(label, [(label, np.clip(rgb, 0, 1))])
    return (lambda u, v: (blank(u, v, 2), np.float32(1))), finish


def traffic_light(rng: np.random.Generator, width_m: float, height_m: float) -> Drawn:
    """Draw a box with three lamps, one of them lit, or seen from behind with none."""
    lit, behind = int(rng.integers(3)), rng.random() < 0.25
    body = rng.uniform(0.04, 0.25) * rng.uniform(0.9, 1.1, 3)
    lamps = np.array([[1.0, 0.2, 0.12], [1.0, 0.75, 0.2], [0.2, 1.0, 0.6]])
    finish = look(LIGHT, [(LIGHT, body), *((LIGHT, c if i == lit else c * 0.25) for i, c in enumerate(lamps))])

    def shape(u, v):
        parts = blank(u, v, 2)
        for number in range(0 if behind else 3):
            centre_v = height_m * (5 - 2 * number) / 6
            put(parts, 3 + number, (u - width_m / 2) ** 2 + (v - centre_v) ** 2 < (0.38 * width_m) ** 2)
        return parts, np.float32(1)

    return shape, finish


def traffic_sign(rng: np.random.Generator, width_m: float, height_m: float) -> Drawn:
    """Draw a disc, triangle, diamond or board with a rim and a symbol; one in five shows its grey back."""
    kind, at = rng.choice(["disc", "triangle", "diamond", "board"]), int(rng.integers(1 << 16))
    inks = np.array([[0.75, 0.1, 0.1], [0.12, 0.25, 0.65], [0.92, 0.92, 0.9], [0.9, 0.75, 0.1], [0.15, 0.4, 0.2]])
    rim, face, symbol = inks[rng.permutation(5)[:3]]
    if rng.random() < 0.2:
        rim = face = symbol = np.full(3, rng.uniform(0.3, 0.55))
    finish = look(SIGN, [(SIGN, jitter(rng, rgb)) for rgb in (face, rim, symbol)])

    def shape(u, v):
        across, up = abs(u / width_m - 0.5) * 2, abs(v / height_m - 0.5) * 2
        if kind == "disc":
            radius = np.sqrt(across**2 + up**2)
        elif kind == "triangle":
            radius = np.maximum(across + v / height_m, 1.15 * (1 - v / height_m) * 0.9 + 0 * u)
        elif kind == "diamond":
            radius = across + up
        else:
            radius = np.maximum(across, up)
        parts = np.where(radius <= 1, np.where(radius > 0.78, 3, 2), NOTHING).astype(np.uint8)
        put(parts, 4, (radius < 0.5) & (noise(u, v, 0.12, at=at) > 0.2))
        return parts, np.float32(1)

    return shape, finish


def clutter(rng: np.random.Generator, height_m: float) -> Drawn:
    """Draw a bin or cabinet: void to the benchmark, and shaped like a small piece of many other things."""
    at = int(rng.integers(1 << 16))
    finish = look(STATIC, [(STATIC, rng.uniform(0.08, 0.6, 3)), (STATIC, rng.uniform(0.05, 0.5, 3))])

    def shape(u, v):
        parts = blank(u, v, 2)
        put(parts, 3, v > 0.8 * height_m)
        return parts, 1 + 0.06 * noise(u, v, 0.1, at=at)

    return shape, finish
