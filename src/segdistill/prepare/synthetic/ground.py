"""Sky and ground of a synthetic street: what is behind and beneath everything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdistill.prepare.synthetic.canvas import Canvas, look, noise

EGO_VEHICLE, ROAD, SIDEWALK, PARKING, RAIL_TRACK, TERRAIN, SKY = 1, 7, 8, 9, 10, 22, 23

# Kinds of ground, numbered as parts of the ground's look (2 is the first colour of a look).
_ROAD, _MARKING, _CURB, _WALK, _GRASS, _PARKING, _RAIL, _BED = range(2, 10)


@dataclass(frozen=True)
class Kerb:
    """One side of the street, outward from the edge of the road. Widths in metres."""

    edge_m: float  # distance of the road's edge from the camera's path
    parking_m: float  # width of the strip inside the edge where cars park, 0 for none
    marked: bool  # that strip is marked off (void to the benchmark), else it is plain road
    verge_m: float  # strip of grass beyond the kerb stone, 0 for none
    walk_m: float

    @property
    def walk_from_m(self) -> float:
        return self.edge_m + 0.2 + self.verge_m

    @property
    def plots_m(self) -> float:
        """Return the distance at which houses, walls and gardens begin."""
        return self.walk_from_m + self.walk_m


@dataclass(frozen=True)
class Street:
    """The plan of a street. Lateral positions in metres, to the right of the camera's path."""

    left: Kerb
    right: Kerb
    crossing_m: tuple[float, float]  # a side street runs from here to there; (inf, inf) for none
    lane_lines_m: tuple[float, ...]
    rails_m: float  # centre of a tram track, nan for none
    own_bed: bool  # the track has its own gravel bed (void to the benchmark), else in the road
    zebra: bool
    road_rgb: np.ndarray
    walk_rgb: np.ndarray
    grass_rgb: np.ndarray
    texture_at: int

    def kerb(self, side: int) -> Kerb:
        return self.left if side < 0 else self.right


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint a gradient towards the haze at the horizon, with clouds; it also fills what stays uncovered."""
    camera, light = canvas.camera, canvas.light
    rows = max(1, min(camera.height_px, round(camera.horizon_px) + 1))
    overcast = rng.random() < 0.45
    zenith = light.haze_rgb * (rng.uniform(0.8, 1.0) if overcast else np.array([0.5, 0.7, 1.0]))
    cover, at = rng.uniform(-0.5, 1.2), int(rng.integers(1 << 16))
    up = np.linspace(1, 0, rows, dtype=np.float32)[:, None]
    v, u = up * 40, np.arange(camera.width_px, dtype=np.float32)[None] * np.float32(60 / camera.height_px)
    clouds = np.clip(0.5 * (noise(u, v * 2, 0.6, "clouds", at) - cover), 0, 0.7)
    for plane, low, high, cloud in zip(canvas.rgb, light.haze_rgb, zenith, 0.93 * light.cast_rgb, strict=True):
        clear = low + np.float32(high - low) * up
        plane[:rows] = np.minimum(np.float32(1.05) * (clear + (np.float32(cloud) - clear) * clouds), 1)
    canvas.labels[:rows] = SKY


def _bands(street: Street, x: np.ndarray) -> np.ndarray:
    """Return the kind of ground (h, w) by distance from the camera's path alone."""
    edges, kinds = [], []
    for side, kerb in ((-1, street.left), (1, street.right)):
        inner = [
            (kerb.edge_m - kerb.parking_m, _PARKING if kerb.marked else _ROAD),
            (kerb.edge_m, _CURB),
            (kerb.edge_m + 0.2, _GRASS if kerb.verge_m else _WALK),
            (kerb.walk_from_m, _WALK),
            (kerb.plots_m, _GRASS),
        ]
        if side < 0:
            edges += [-edge for edge, _ in reversed(inner)]
            kinds += [kind for _, kind in reversed(inner)] + [_ROAD]
        else:
            edges += [edge for edge, _ in inner]
            kinds += [kind for _, kind in inner]
    band = np.zeros(x.shape, np.uint8)
    for edge in edges:
        band += x > np.float32(edge)
    return np.array(kinds, np.uint8)[band]


def _mark(street: Street, kinds: np.ndarray, x: np.ndarray, z: np.ndarray, in_crossing: np.ndarray) -> None:
    """Mark lane lines, tram rails and a zebra crossing, at least about a pixel wide wherever they are."""
    px_m = np.abs(x[:, 1:2] - x[:, :1])
    on_road = (kinds == _ROAD) & ~in_crossing
    for number, line_m in enumerate(street.lane_lines_m):
        dashed = True if number == 0 else (z % 9) < 4
        kinds[on_road & (abs(x - np.float32(line_m)) < np.maximum(0.07, 0.4 * px_m)) & dashed] = _MARKING
    if np.isfinite(street.rails_m):
        away = abs(x - np.float32(street.rails_m))
        if street.own_bed:
            kinds[(away < 1.7) & ~in_crossing] = _BED
        kinds[abs(away - 0.72) < np.maximum(0.05, 0.35 * px_m)] = _RAIL
    if street.zebra and np.isfinite(street.crossing_m[0]):
        near = street.crossing_m[0] - 3.5
        kinds[(kinds == _ROAD) & (z > near) & (z < near + 2.5) & ((x % 1) < 0.5)] = _MARKING


def paint_ground(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Paint road, kerbs, sidewalks, verges and markings, with the shadow that one side of the street casts."""
    camera, light = canvas.camera, canvas.light
    top = max(0, round(camera.horizon_px))
    rows = np.arange(top, camera.height_px, dtype=np.float32)[:, None] + np.float32(0.5 - camera.horizon_px)
    z = np.minimum(np.float32(camera.focal_px * camera.eye_m) / np.maximum(rows, 0.3), 400)
    columns = np.arange(camera.width_px, dtype=np.float32)[None] + np.float32(0.5 - camera.vanishing_px)
    x = columns * (z * np.float32(1 / camera.focal_px))
    kinds = _bands(street, x)
    in_crossing = (z > street.crossing_m[0]) & (z < street.crossing_m[1])
    kinds[np.broadcast_to(in_crossing, kinds.shape)] = _ROAD
    _mark(street, kinds, x, z, in_crossing)

    at = street.texture_at
    fine = np.clip(6 / z, 0.15, 1)  # texture finer than a pixel averages out
    patches = noise(x, z, 0.4, "clouds", at)
    shade = 1 + 0.07 * patches + 0.05 * fine * noise(x, z, 0.06, at=at)
    slabs = ((x % np.float32(0.8)) < 0.07) | ((z % np.float32(0.8)) < 0.07)
    shade -= 0.14 * fine * (slabs & (kinds == _WALK))
    grass = kinds == _GRASS
    shade += grass * (0.1 * patches + 0.18 * fine * noise(x, z, 0.12, at=at + 9))
    shadow_m = rng.uniform(0.2, 1.1) * (street.left.plots_m if light.sun_x < 0 else street.right.plots_m)
    shaded = (x < -shadow_m) if light.sun_x < 0 else (x > shadow_m)
    shaded |= noise(x, z, 0.35, "clouds", at + 77) > rng.uniform(1.0, 3.0)  # crowns overhead
    shade *= np.where(shaded & ~in_crossing, np.float32(1 - 1.1 * light.contrast), np.float32(1))

    road_label = RAIL_TRACK if street.own_bed else ROAD
    paint = np.full(3, rng.uniform(0.6, 0.85))
    bed = 0.9 * street.road_rgb + np.array([0.06, 0.04, 0.02])
    grass_rgb = street.grass_rgb if rng.random() < 0.75 else np.array([0.42, 0.36, 0.27]) * rng.uniform(0.7, 1.2)
    finish = look(
        ROAD,
        [
            (ROAD, street.road_rgb),
            (ROAD, paint),
            (SIDEWALK, np.clip(street.walk_rgb * 1.15, 0, 1)),
            (SIDEWALK, street.walk_rgb),
            (TERRAIN, grass_rgb),
            (PARKING, street.road_rgb * 0.95),
            (road_label, street.road_rgb * 0.55),
            (road_label, bed),
        ],
    )
    canvas.stamp(top, 0, kinds, shade, finish, z)


def paint_hood(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint the bonnet of the camera's own car at the bottom edge: void to the benchmark."""
    camera = canvas.camera
    rise_px = rng.uniform(0.03, 0.08) * camera.height_px
    across = np.linspace(-1, 1, camera.width_px, dtype=np.float32)[None]
    top = int(camera.height_px - rise_px)
    rows = np.arange(top, camera.height_px, dtype=np.float32)[:, None] + 0.5
    parts = np.where(rows > camera.height_px - rise_px * (1 - 0.8 * across**4), 2, 0).astype(np.uint8)
    finish = look(EGO_VEHICLE, [(EGO_VEHICLE, np.full(3, rng.uniform(0.06, 0.4)))])
    canvas.stamp(top, 0, parts, 1 + 0.2 * across**2, finish, 1.0)
