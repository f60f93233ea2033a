"""The drawing surface of the synthetic city: a pinhole camera, daylight and two kinds of upright surface.

World axes in metres: x to the right of the camera, y up from the ground, z ahead. A scene is painted from far to
near, so no depth buffer is needed. A surface is described by a `shape`, called with the points' own coordinates

    shape(u, v) -> parts uint8 (h, w), shade float32 (h, w) or broadcastable

where u runs along the surface and v up from its foot, in metres, and `parts` indexes a `Look` (colour and label of
each part). Part 0 is nothing; part 1 is labelled but see-through, such as the air between the bars of a fence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

NEAREST_M = 1.0
NOTHING, SEE_THROUGH = 0, 1
_TILE = 256

# A number, or one value for each point.
Values = float | np.floating | np.ndarray
Shape = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Values]]
Rgb = Sequence[float] | np.ndarray  # (3,) in 0..1


@lru_cache(maxsize=1)
def _noise_tiles() -> dict[str, np.ndarray]:
    """Return fixed tiles (256 * 256,) float32 of unit variance that repeat without a seam.

    `white` is independent per cell, `clouds` has hills of 4 to 32 cells, `rough` is both, as plaster and asphalt are.
    """
    rng = np.random.Generator(np.random.Philox(key=20160526))
    white = rng.standard_normal((_TILE, _TILE), dtype=np.float32)
    clouds = np.zeros((_TILE, _TILE), np.float32)
    for cell, weight in ((4, 0.5), (8, 0.8), (16, 1.0), (32, 1.0)):
        coarse = rng.standard_normal((_TILE // cell, _TILE // cell), dtype=np.float32)
        octave: np.ndarray = coarse.repeat(cell, axis=0).repeat(cell, axis=1)
        for axis in (0, 1):  # two box blurs turn the blocks into smooth hills
            for _ in range(2):
                octave = np.asarray(sum(np.roll(octave, shift, axis) for shift in range(cell))) / np.float32(cell)
        clouds += np.float32(weight) * octave / octave.std()
    clouds /= clouds.std()
    rough = clouds + np.float32(0.8) * white
    return {name: tile.ravel() for name, tile in (("white", white), ("clouds", clouds), ("rough", rough / rough.std()))}


def noise(u: np.ndarray, v: np.ndarray, cell_m: float, kind: str = "white", at: int = 0) -> np.ndarray:
    """Return noise of unit variance at points (u, v), constant over cells of `cell_m`; `at` is a place in the tile."""
    # The large offset keeps the numbers positive, so that truncation is a floor.
    column = (u * np.float32(1 / cell_m) + np.float32(4096 + at % 251)).astype(np.int32) & (_TILE - 1)
    row = (v * np.float32(1 / cell_m) + np.float32(4096 + at % 241)).astype(np.int32) & (_TILE - 1)
    return _noise_tiles()[kind].take(row * _TILE + column)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street."""

    height_px: int
    width_px: int
    focal_px: float
    vanishing_px: float  # column of the street's vanishing point
    horizon_px: float  # row of the horizon
    eye_m: float  # height of the camera above the ground

    def column(self, x_m: float, z_m: float) -> float:
        return self.vanishing_px + self.focal_px * x_m / z_m

    def row(self, y_m: float, z_m: float) -> float:
        return self.horizon_px + self.focal_px * (self.eye_m - y_m) / z_m


@dataclass(frozen=True)
class Light:
    """Weather and time of day; colours are linear-ish RGB in 0..1."""

    haze_rgb: np.ndarray  # (3,) what everything far away turns into
    visibility_m: float  # distance over which haze takes about two thirds
    sun_x: float  # -1 sun on the left .. +1 sun on the right: faces turned to it are bright
    contrast: float  # 0 overcast .. 0.5 hard sun
    cast_rgb: np.ndarray  # (3,) colour of the light
    exposure: float
    grain: float  # standard deviation of the sensor's noise, of 255
    lamps_lit: bool  # dusk: windows and lamps glow

    def gain(self, facing_x: float) -> float:
        """Return the brightness of a surface whose normal points to `facing_x`: -1 left, 0 the camera, +1 right."""
        return 1.0 + self.contrast * (0.8 * facing_x * self.sun_x - 0.25)


@dataclass(frozen=True)
class Look:
    """Colour and Cityscapes label id of each of the K parts of a shape."""

    colours: np.ndarray  # (3, K) float32
    labels: np.ndarray  # (K,) uint8


def look(see_through_label: int, parts: Sequence[tuple[int, Rgb]]) -> Look:
    """Return a look whose parts 2, 3, ... have the given (label id, RGB in 0..1)."""
    colours = np.zeros((3, len(parts) + 2), np.float32)
    labels = np.zeros(len(parts) + 2, np.uint8)
    labels[SEE_THROUGH] = see_through_label
    for number, (label, rgb) in enumerate(parts, start=2):
        labels[number], colours[:, number] = label, rgb
    return Look(colours, labels)


class Canvas:
    """Image (3, H, W) float32 and label ids (H, W) uint8 that surfaces are painted onto."""

    def __init__(self, camera: Camera, light: Light) -> None:
        self.camera, self.light = camera, light
        self.rgb = np.zeros((3, camera.height_px, camera.width_px), np.float32)
        self.labels = np.zeros((camera.height_px, camera.width_px), np.uint8)

    def haze(self, z_m: Values) -> Values:
        return 1 - np.exp(-z_m / np.float32(self.light.visibility_m))

    def stamp(self, row: int, column: int, parts, shade, finish: Look, z_m, gain: float = 1.0) -> None:
        """Paint `parts` (h, w) with its top left pixel at (row, column); z_m is a number or broadcastable (h, w)."""
        rows, columns = slice(row, row + parts.shape[0]), slice(column, column + parts.shape[1])
        fog = np.asarray(self.haze(z_m), np.float32)
        rgb = finish.colours.take(parts, axis=1)
        rgb *= shade * ((1 - fog) * np.float32(gain))
        rgb += self.light.haze_rgb[:, None, None] * fog
        np.copyto(self.rgb[:, rows, columns], rgb, where=parts > SEE_THROUGH)
        np.copyto(self.labels[rows, columns], finish.labels.take(parts), where=parts > NOTHING)

    def front(self, x_m, y_m, width_m, height_m, z_m, shape: Shape, finish: Look, gain: float = 1.0) -> None:
        """Paint an upright rectangle that faces the camera; (x_m, y_m) is its lower left corner."""
        camera = self.camera
        if z_m < NEAREST_M:
            return
        px_m = z_m / camera.focal_px
        left, bottom = camera.column(x_m, z_m), camera.row(y_m, z_m)
        first, end = max(0, round(left)), min(camera.width_px, max(round(left) + 1, round(left + width_m / px_m)))
        top, foot = max(0, round(bottom - height_m / px_m)), min(camera.height_px, round(bottom))
        if first >= end or top >= foot:
            return
        u = (np.arange(first, end, dtype=np.float32)[None] + np.float32(0.5 - left)) * np.float32(px_m)
        v = (np.float32(bottom - 0.5) - np.arange(top, foot, dtype=np.float32)[:, None]) * np.float32(px_m)
        # A surface thinner than a pixel still fills its column; clipping keeps that column inside the shape.
        parts, shade = shape(np.minimum(np.maximum(u, 0), np.float32(width_m)), v)
        self.stamp(top, first, parts, shade, finish, z_m, gain * self.light.gain(0))

    def side(self, x_m, y_m, near_m, far_m, height_m, shape: Shape, finish: Look, gain: float = 1.0) -> None:
        """Paint an upright rectangle along the street at `x_m`, seen at a slant; u runs from its near end."""
        camera = self.camera
        near_m = max(near_m, NEAREST_M)
        if far_m <= near_m or x_m == 0:
            return
        ends = sorted((camera.column(x_m, near_m), camera.column(x_m, far_m)))
        first, end = max(0, round(ends[0])), min(camera.width_px, round(ends[1]))
        tops = [camera.row(y_m + height_m, z) for z in (near_m, far_m)]
        feet = [camera.row(y_m, z) for z in (near_m, far_m)]
        top, foot = max(0, round(min(tops))), min(camera.height_px, round(max(feet)))
        if first >= end or top >= foot:
            return
        columns = np.arange(first, end, dtype=np.float32)[None] + np.float32(0.5 - camera.vanishing_px)
        z = np.minimum(np.maximum(np.float32(camera.focal_px * x_m) / columns, np.float32(near_m)), np.float32(far_m))
        rows = np.arange(top, foot, dtype=np.float32)[:, None] + np.float32(0.5 - camera.horizon_px)
        v = np.float32(camera.eye_m - y_m) - rows * (z * np.float32(1 / camera.focal_px))
        parts, shade = shape(z - np.float32(near_m), v)
        np.copyto(parts, np.uint8(NOTHING), where=(v < 0) | (v > height_m))
        self.stamp(top, first, parts, shade, finish, z, gain * self.light.gain(-np.sign(x_m)))

    def shadow(self, x_m: float, width_m: float, near_m: float, far_m: float, darkness: float) -> None:
        """Darken a patch of ground; it changes no label."""
        camera = self.camera
        near_m = max(near_m, NEAREST_M)
        if far_m <= near_m:
            return
        top = max(0, round(camera.row(0, far_m)))
        foot = min(camera.height_px, max(top + 1, round(camera.row(0, near_m))))
        for row in range(top, foot):
            z = camera.focal_px * camera.eye_m / max(row + 0.5 - camera.horizon_px, 0.5)
            first, end = round(camera.column(x_m, z)), round(camera.column(x_m + width_m, z))
            self.rgb[:, row, max(first, 0) : max(end, 0)] *= np.float32(1 - darkness)
