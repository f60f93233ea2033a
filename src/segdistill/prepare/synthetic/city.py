"""What a synthetic city is like: its style, the weather and camera of a drive, the plan of one street."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdistill.prepare.synthetic.canvas import Camera, Light
from segdistill.prepare.synthetic.ground import Kerb, Street
from segdistill.prepare.synthetic.shapes import jitter


@dataclass(frozen=True)
class City:
    """What the frames of one city have in common."""

    facade_rgb: np.ndarray  # (5, 3)
    leaf_rgb: np.ndarray
    road_rgb: np.ndarray
    walk_rgb: np.ndarray
    storeys: tuple[int, int]
    plot_odds: np.ndarray  # house, wall, fence, hedge, trees
    lanes_per_side: int
    trees: float  # probability of a tree at each place for one
    parked: float
    crowd: float  # people per side of a street
    trams: float


def sample_city(rng: np.random.Generator) -> City:
    warm = rng.uniform(0.85, 1.15)
    brightness = rng.uniform(0.25, 0.8, (5, 1))
    facade_rgb = np.clip(brightness * (np.array([warm, 1, 2 - warm]) ** 0.8 + rng.normal(0, 0.07, (5, 3))), 0.05, 0.95)
    low = int(rng.integers(2, 6))
    grey = rng.uniform(0.25, 0.42)
    return City(
        facade_rgb=facade_rgb,
        leaf_rgb=np.array([rng.uniform(0.18, 0.4), rng.uniform(0.3, 0.42), rng.uniform(0.1, 0.2)]),
        road_rgb=grey * rng.uniform(0.97, 1.04, 3),
        walk_rgb=grey * rng.uniform(0.9, 1.4) * np.array([rng.uniform(1, 1.12), 1, rng.uniform(0.85, 1.02)]),
        storeys=(low, low + int(rng.integers(1, 4))),
        plot_odds=rng.dirichlet([6, 1.5, 1.5, 1.0, 2.4]),
        lanes_per_side=int(rng.integers(1, 3)),
        trees=rng.uniform(0.25, 0.9),
        parked=rng.uniform(0.15, 0.7),
        crowd=rng.uniform(2, 7),
        trams=rng.uniform(0, 0.15),
    )


def sample_light(rng: np.random.Generator) -> Light:
    """Draw the weather of one drive: overcast, sunny, low sun or dusk."""
    weather = rng.choice(["overcast", "sun", "low sun", "dusk"], p=[0.35, 0.35, 0.17, 0.13])
    exposure, contrast = {"overcast": (0.95, 0.08), "sun": (1.15, 0.4), "low sun": (1.0, 0.5), "dusk": (0.65, 0.1)}[
        weather
    ]
    cast = {"low sun": [1.08, 0.98, 0.84], "dusk": [0.88, 0.95, 1.15]}.get(weather, [1.0, 1.0, 1.0])
    cast_rgb = np.array(cast) * rng.uniform(0.95, 1.05, 3)
    return Light(
        haze_rgb=(rng.uniform(0.72, 0.95) * cast_rgb).astype(np.float32),
        visibility_m=float(np.exp(rng.uniform(np.log(90), np.log(600)))),
        sun_x=float(rng.choice([-1, 1]) * rng.uniform(0.3, 1)),
        contrast=contrast * rng.uniform(0.8, 1.1),
        cast_rgb=cast_rgb.astype(np.float32),
        exposure=exposure * rng.uniform(0.8, 1.2),
        grain=rng.uniform(1.5, 5) * (1.6 if weather == "dusk" else 1),
        lamps_lit=weather == "dusk",
    )


def sample_camera(rng: np.random.Generator, size_px: tuple[int, int]) -> Camera:
    height_px, width_px = size_px
    focal, eye_m = rng.uniform(1.15, 1.4), rng.uniform(1.3, 1.65)
    horizon, vanishing = rng.uniform(0.4, 0.48), rng.normal(0.5, 0.06)
    return Camera(height_px, width_px, focal * height_px, vanishing * width_px, horizon * height_px, eye_m)


def sample_street(rng: np.random.Generator, city: City, staged: set[str]) -> Street:
    lane_m = rng.uniform(3.0, 3.6)
    own_left, own_right = -lane_m / 2, lane_m / 2
    lanes = city.lanes_per_side
    left_m, right_m = -own_left + lanes * lane_m, own_right + (lanes - 1) * lane_m
    lines = (
        own_left,
        *(own_left - lane_m * n for n in range(1, lanes)),
        *(own_right + lane_m * n for n in range(lanes - 1)),
    )
    marked = rng.random() < 0.3
    kerbs = []
    for edge_m in (left_m, right_m):
        park = rng.random() < 0.6  # else nobody parks on this side
        grassy = rng.random() < 0.3 or "verge" in staged
        verge_m = rng.uniform(1.2, 4.5) if grassy else 0.0
        parking_m = 2.2 if park else 0.0
        kerbs.append(Kerb(edge_m + parking_m + 0.2, parking_m, park and marked, verge_m, rng.uniform(3, 7)))
    trams = "train" in staged or rng.random() < city.trams
    near_m = rng.uniform(14, 50) if rng.random() < 0.45 else np.inf
    return Street(
        left=kerbs[0],
        right=kerbs[1],
        crossing_m=(near_m, near_m + rng.uniform(7, 13)),
        lane_lines_m=lines,
        rails_m=own_left - lane_m / 2 if trams else np.nan,
        own_bed=trams and rng.random() < 0.4,
        zebra=rng.random() < 0.6,
        road_rgb=jitter(rng, city.road_rgb, 0.06),
        walk_rgb=jitter(rng, city.walk_rgb, 0.06),
        grass_rgb=jitter(rng, city.leaf_rgb * 1.1, 0.1),
        texture_at=int(rng.integers(1 << 16)),
    )
