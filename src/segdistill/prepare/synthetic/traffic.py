"""Things that move through a synthetic street: vehicles as boxes in perspective, people, and riders on two wheels.

Paint and clothes are drawn per instance from the same ranges for every kind, so that a bus differs from a truck, and
a rider from a pedestrian, by shape and surroundings alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdistill.prepare.synthetic.canvas import SEE_THROUGH, Canvas, Rgb, Shape, look, noise
from segdistill.prepare.synthetic.shapes import blank, capsule, put

PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 24, 25, 26, 27, 28, 31, 32, 33

BODY, GLASS, DARK, TRIM, TAIL, HEAD = 2, 3, 4, 5, 6, 7


_GREYS = (0.05, 0.12, 0.35, 0.6, 0.85)
_HUES = np.array([[0.6, 0.08, 0.08], [0.1, 0.16, 0.5], [0.12, 0.3, 0.18], [0.75, 0.6, 0.15], [0.45, 0.32, 0.22],
                  [0.25, 0.45, 0.6], [0.75, 0.35, 0.1], [0.35, 0.1, 0.25]])  # fmt: skip


@dataclass(frozen=True)
class Build:
    """Proportions of a kind of vehicle. Outlines are (position from the near end, height), as fractions."""

    label: int
    length_m: tuple[float, float]
    width_m: tuple[float, float]
    height_m: tuple[float, float]
    outline: tuple[tuple[float, float], ...]
    windows: tuple[float, float]  # from, to: fractions of the height
    glazed: tuple[float, float]  # from, to: fractions of the length
    pillar_m: float  # distance between window pillars
    taper: float  # how much narrower the roof is than the body


BUILDS = {
    "hatchback": Build(CAR, (3.6, 4.3), (1.65, 1.8), (1.4, 1.6),
                       ((0, 0.9), (0.06, 1), (0.55, 1), (0.76, 0.6), (1, 0.48)), (0.58, 0.92), (0.05, 0.7), 1.1, 0.3),
    "saloon": Build(CAR, (4.3, 4.9), (1.7, 1.9), (1.35, 1.5),
                    ((0, 0.62), (0.12, 0.64), (0.28, 1), (0.58, 1), (0.74, 0.62), (1, 0.5)), (0.62, 0.92), (0.2, 0.68),
                    1.2, 0.35),
    "van": Build(CAR, (4.6, 5.4), (1.85, 2.0), (1.9, 2.4), ((0, 1), (0.7, 1), (0.85, 0.55), (1, 0.45)), (0.55, 0.9),
                 (0.55, 0.8), 1.0, 0.08),
    "box truck": Build(TRUCK, (6.5, 9.5), (2.3, 2.5), (2.8, 3.7),
                       ((0, 1), (0.68, 1), (0.681, 0.3), (0.72, 0.3), (0.721, 0.74), (0.95, 0.72), (1, 0.5)),
                       (0.48, 0.66), (0.76, 0.92), 9.0, 0.0),
    "flatbed": Build(TRUCK, (6.0, 8.5), (2.2, 2.4), (2.5, 3.0),
                     ((0, 0.62), (0.6, 0.62), (0.601, 0.35), (0.66, 0.35), (0.661, 1), (0.93, 0.97), (1, 0.6)),
                     (0.62, 0.88), (0.72, 0.92), 9.0, 0.05),
    "bus": Build(BUS, (9.5, 13), (2.4, 2.55), (2.9, 3.3), ((0, 0.97), (0.02, 1), (0.98, 1), (1, 0.95)), (0.42, 0.82),
                 (0.02, 0.98), 1.5, 0.03),
    "train": Build(TRAIN, (18, 30), (2.3, 2.5), (3.1, 3.6), ((0, 1), (0.97, 1), (1, 0.9)), (0.45, 0.8),
                   (0.04, 0.97), 1.9, 0.06),
}  # fmt: skip


def paint_rgb(rng: np.random.Generator) -> np.ndarray:
    """Paint for anything on wheels: mostly white, grey and black, sometimes a colour."""
    if rng.random() < 0.55:
        return _GREYS[rng.integers(len(_GREYS))] * rng.uniform(0.85, 1.1, 3)
    rgb = _HUES[rng.integers(len(_HUES))] * rng.uniform(0.6, 1.3) + rng.normal(0, 0.04, 3)
    return np.minimum(np.maximum(rgb, 0.03), 0.95)


def _flank(build: Build, length_m: float, height_m: float, reverse: bool, at: int) -> Shape:
    """Draw the side of a vehicle: outline, windows between pillars, wheels, daylight under the floor."""
    places, heights = np.array(build.outline).T
    on_rails = build.label == TRAIN
    wheel_m = 0.0 if on_rails else min(0.5, 0.22 * height_m)
    wheels_m = [length_m * fraction for fraction in ((0.19, 0.81) if length_m < 6 else (0.14, 0.26, 0.86))]

    def shape(u, v):
        along = u / np.float32(length_m)
        along = 1 - along if reverse else along
        roof = np.interp(along, places, heights).astype(np.float32) * np.float32(height_m)
        parts = blank(u, v)
        floor_m = 0.1 if on_rails else 0.7 * wheel_m
        put(parts, BODY, (v <= roof) & (v >= floor_m))
        put(parts, TRIM, (v >= floor_m) & (v < build.windows[0] * height_m * 0.45))
        window = (v > build.windows[0] * height_m) & (v < np.minimum(build.windows[1] * height_m, roof - 0.08))
        window &= (along > build.glazed[0]) & (along < build.glazed[1])
        put(parts, GLASS, window & ((u % np.float32(build.pillar_m)) > 0.12))
        for centre_m in wheels_m if wheel_m else ():
            place_m = length_m - centre_m if reverse else centre_m
            away = (u - place_m) ** 2 + (v - wheel_m) ** 2
            put(parts, DARK, away < (1.15 * wheel_m) ** 2)
            put(parts, TRIM, away < (0.5 * wheel_m) ** 2)
        return parts, 0.86 + 0.25 * v / np.float32(height_m) + 0.04 * noise(u, v, 0.3, "clouds", at)

    return shape


def _end(build: Build, width_m: float, height_m: float, oncoming: bool, at: int) -> Shape:
    """Draw the front or the rear of a vehicle, facing the camera."""
    cargo = build.label == TRUCK and not oncoming  # the rear of a truck has doors and no window
    waist = 0.5 if build.label == CAR else build.windows[0]
    lamp = HEAD if oncoming else TAIL

    def shape(u, v):
        side = abs(u / np.float32(width_m) - 0.5) * 2
        up = v / np.float32(height_m)
        half = 1 - build.taper * np.clip((up - waist) / (1 - waist), 0, 1)
        parts = blank(u, v)
        put(parts, BODY, (side <= half) & (up > 0.12) & (up <= 1))
        if build.label != TRAIN:
            put(parts, DARK, (up <= 0.2) & (side > 0.62) & (side < 0.97))
        put(parts, DARK, (up > 0.13) & (up < 0.2) & (side < 0.97))
        if cargo:
            put(parts, TRIM, (side < 0.02) | ((up > 0.25) & (abs(side - 0.9) < 0.03)))
        else:
            put(parts, GLASS, (side < half - 0.12) & (up > waist + 0.06) & (up < 0.92))
        put(parts, lamp, (abs(up - min(0.45, 0.8 / height_m)) < 0.06) & (side > 0.72) & (side < 0.92))
        put(parts, TRIM, (abs(up - 0.27) < 0.04) & (side < 0.3))
        return parts, 0.84 + 0.25 * up + 0.04 * noise(u, v, 0.2, "clouds", at)

    return shape


def vehicle(rng: np.random.Generator, kind: str, x_m: float, z_m: float, *, oncoming: bool, crossing: bool = False):
    """Return the painter of a vehicle centred at x_m, its near end at z_m; `crossing` shows its whole side."""
    build = BUILDS[kind]
    length_m, width_m, height_m = (rng.uniform(*span) for span in (build.length_m, build.width_m, build.height_m))
    at, body = int(rng.integers(1 << 16)), paint_rgb(rng)
    trim = body * rng.uniform(0.6, 0.9) if rng.random() < 0.6 else paint_rgb(rng)
    glass = rng.uniform(0.08, 0.35) * np.array([0.9, 1.0, 1.05])
    dark, tail, head = np.full(3, rng.uniform(0.03, 0.09)), np.array([0.8, 0.08, 0.06]), np.array([0.95, 0.92, 0.8])
    finish = look(build.label, [(build.label, rgb) for rgb in (body, glass, dark, trim, tail, head)])
    end = _end(build, width_m, height_m, oncoming, at)

    def paint(canvas: Canvas) -> None:
        if crossing:
            flank = _flank(build, length_m, height_m, oncoming, at)
            canvas.shadow(x_m - length_m / 2, length_m, z_m - 0.3, z_m + width_m, 0.5)
            canvas.front(x_m - length_m / 2, 0, length_m, height_m, z_m, flank, finish)
            return
        left_m, right_m = x_m - width_m / 2, x_m + width_m / 2
        canvas.shadow(left_m - 0.15, width_m + 0.3, z_m - 0.4, z_m + length_m, 0.55)
        flank = _flank(build, length_m, height_m, oncoming, at)
        visible_m = left_m if left_m > 0 else right_m if right_m < 0 else 0.0
        near_m = max(z_m, 1.0)
        canvas.side(visible_m, 0, near_m, z_m + length_m, height_m, flank, finish, 0.95)
        canvas.front(left_m, 0, width_m, height_m, z_m, end, finish)

    return paint


def _clothes(rng: np.random.Generator, label: int) -> list[tuple[int, Rgb]]:
    """Draw the colours of top, trousers, skin and hair or helmet of one person."""
    skin = rng.uniform(0.25, 0.85) * np.array([1.0, 0.78, 0.64])
    return [(label, rgb) for rgb in (paint_rgb(rng), paint_rgb(rng) * 0.7, skin, paint_rgb(rng) * 0.5)]


def person(rng: np.random.Generator, x_m: float, z_m: float):
    """Return the painter of someone on foot, seen from ahead, behind or the side."""
    height_m = rng.uniform(1.45, 1.9) if rng.random() < 0.85 else rng.uniform(0.9, 1.3)
    stride, arms, wide = rng.uniform(0, 0.2), rng.uniform(0.1, 0.25), rng.uniform(0.09, 0.14)
    finish = look(PERSON, _clothes(rng, PERSON))
    coat, bag = rng.random() < 0.3, rng.random() < 0.3

    def shape(u, v):
        u, v = u / np.float32(height_m) - np.float32(0.25), v / np.float32(height_m)
        parts = blank(u, v)
        for foot in (-stride, stride):
            put(parts, 3, capsule(u, v, (foot, 0.02), (0.3 * foot + 0.035 * np.sign(foot), 0.48), 0.05))
            put(parts, 2, capsule(u, v, (0.5 * foot + np.sign(foot) * arms, 0.5), (0.08 * np.sign(foot), 0.8), 0.035))
        put(parts, 2, capsule(u, v, (0, 0.3 if coat else 0.52), (0, 0.78), wide))
        if bag:
            put(parts, 5, capsule(u, v, (arms, 0.45), (arms, 0.55), 0.07))
        put(parts, 5, capsule(u, v, (0.0, 0.94), (0.0, 0.95), 0.058))
        put(parts, 4, capsule(u, v, (0.01, 0.91), (0.01, 0.92), 0.05))
        return parts, 0.8 + 0.25 * v

    def paint(canvas: Canvas) -> None:
        canvas.shadow(x_m - 0.3, 0.6, z_m - 0.1, z_m + 0.3, 0.35)
        canvas.front(x_m - height_m / 4, 0, height_m / 2, height_m, z_m, shape, finish)

    return paint


def _from_side(u, v, motor: bool, ridden: bool) -> np.ndarray:
    """Draw the parts of a two-wheeler in profile; the air inside its wheels and frame belongs to it."""
    parts = blank(u, v)
    wheel_m, hubs = (0.31, (0.35, 1.65)) if motor else (0.34, (0.36, 1.4))
    seat, bars = ((0.75, 0.78), (1.45, 1.0)) if motor else ((0.65, 0.92), (1.25, 1.02))
    for hub in hubs:
        away = (u - hub) ** 2 + (v - wheel_m) ** 2
        put(parts, SEE_THROUGH, away < wheel_m**2)
        put(parts, 6, (away < wheel_m**2) & (away > (wheel_m - (0.12 if motor else 0.06)) ** 2))
    pedals = (0.9, 0.34)
    put(parts, SEE_THROUGH, capsule(u, v, (0.8, 0.6), (1.1, 0.7), 0.14))
    for start, end in ((pedals, seat), (pedals, bars), (seat, bars), ((hubs[0], wheel_m), pedals)):
        put(parts, 7, capsule(u, v, start, end, 0.05))
    put(parts, 7, capsule(u, v, bars, (hubs[1], wheel_m), 0.05))
    if motor:
        put(parts, 7, capsule(u, v, (0.6, 0.62), (1.3, 0.62), 0.2))
        put(parts, 6, capsule(u, v, (0.8, 0.35), (1.15, 0.35), 0.14))
    if ridden:
        hip, shoulder = (seat[0], seat[1] + 0.1), (seat[0] + 0.35, seat[1] + 0.62)
        put(parts, 3, capsule(u, v, hip, (1.05, 0.72), 0.085))
        put(parts, 3, capsule(u, v, (1.05, 0.72), (0.95, 0.3), 0.07))
        put(parts, 2, capsule(u, v, hip, shoulder, 0.14))
        put(parts, 2, capsule(u, v, shoulder, bars, 0.055))
        put(
            parts,
            4,
            capsule(u, v, (shoulder[0] + 0.1, shoulder[1] + 0.2), (shoulder[0] + 0.1, shoulder[1] + 0.22), 0.1),
        )
        put(
            parts,
            5,
            capsule(u, v, (shoulder[0] + 0.05, shoulder[1] + 0.27), (shoulder[0] + 0.1, shoulder[1] + 0.29), 0.1),
        )
    return parts


def _from_end(u, v, motor: bool, ridden: bool) -> np.ndarray:
    """Draw the parts of a two-wheeler seen from ahead or behind: narrow, with the rider above it."""
    u, parts = u - np.float32(0.45), blank(u, v)
    put(parts, 6, capsule(u, v, (0, 0.1), (0, 0.55), 0.1 if motor else 0.045))
    put(parts, 7, capsule(u, v, (-0.3, 1.0), (0.3, 1.0), 0.045))
    put(parts, 7, capsule(u, v, (0, 0.55), (0, 0.95), 0.17 if motor else 0.06))
    if ridden:
        for side in (-1, 1):
            put(parts, 3, capsule(u, v, (side * 0.2, 0.4), (side * 0.12, 0.95), 0.075))
            put(parts, 2, capsule(u, v, (side * 0.32, 1.02), (side * 0.2, 1.42), 0.06))
        put(parts, 2, capsule(u, v, (0, 1.02), (0, 1.4), 0.19))
        put(parts, 4, capsule(u, v, (0, 1.66), (0, 1.68), 0.1))
        put(parts, 5, capsule(u, v, (0, 1.74), (0, 1.76), 0.11))
    return parts


def two_wheeler(rng: np.random.Generator, x_m: float, z_m: float, *, motor: bool, ridden: bool, profile: bool):
    """Return the painter of a bicycle or motorcycle, with or without its rider, in profile or from its end."""
    label = MOTORCYCLE if motor else BICYCLE
    frame = paint_rgb(rng)
    finish = look(label, [*_clothes(rng, RIDER), (label, np.full(3, rng.uniform(0.04, 0.12))), (label, frame)])
    width_m, height_m = (2.0 if profile else 0.9), (1.9 if ridden else 1.12)
    flip, draw = rng.random() < 0.5, _from_side if profile else _from_end

    def shape(u, v):
        parts = draw(np.float32(width_m) - u if flip else u, v, motor, ridden)
        return parts, 0.85 + 0.12 * v

    def paint(canvas: Canvas) -> None:
        canvas.shadow(x_m - width_m * 0.4, width_m * 0.8, z_m - 0.15, z_m + 0.4, 0.4)
        canvas.front(x_m - width_m / 2, 0, width_m, height_m, z_m, shape, finish)

    return paint
