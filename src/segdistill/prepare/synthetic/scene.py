"""Place the things of a synthetic street: houses, furniture, traffic and people, to be painted from far to near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from segdistill.prepare.synthetic import shapes
from segdistill.prepare.synthetic.canvas import Canvas, Light
from segdistill.prepare.synthetic.city import City
from segdistill.prepare.synthetic.ground import Street
from segdistill.prepare.synthetic.traffic import person, two_wheeler, vehicle

FAR_M = 120.0
# Things too rare to leave to chance: each is placed on purpose in one of every STAGED_EVERY frames in a row.
STAGED = ("train", "bus", "truck", "motorcycle", "motorcyclist", "cyclist", "bicycle", "light", "sign", "wall", "fence",
          "person", "car", "verge")  # fmt: skip
STAGED_EVERY = 4


@dataclass
class Scene:
    """The things of one frame with their distance, to be painted from far to near."""

    things: list[tuple[float, Callable[[Canvas], None]]] = field(default_factory=list)

    def add(self, z_m: float, paint: Callable[[Canvas], None]) -> None:
        self.things.append((z_m, paint))

    def front(self, x_m, y_m, width_m, height_m, z_m, drawn: shapes.Drawn, gain: float = 1.0) -> None:
        self.add(z_m, lambda canvas: canvas.front(x_m, y_m, width_m, height_m, z_m, *drawn, gain))

    def side(self, x_m, near_m, far_m, height_m, drawn: shapes.Drawn) -> None:
        # Ordered by its far end, for all things along it are nearer to the middle of the street.
        self.add(far_m, lambda canvas: canvas.side(x_m, 0, near_m, far_m, height_m, *drawn))

    def paint(self, canvas: Canvas) -> None:
        for _, paint in sorted(self.things, key=lambda thing: -thing[0]):
            paint(canvas)


def _add_tree(scene: Scene, rng: np.random.Generator, city: City, x_m: float, z_m: float, bush: bool = False) -> None:
    height_m, width_m = (
        (rng.uniform(0.8, 2.2), rng.uniform(1.2, 3)) if bush else (rng.uniform(4, 12), rng.uniform(3, 7.5))
    )
    trunk_m = 0.0 if bush else rng.uniform(1.6, 2.8)
    drawn = shapes.foliage(rng, city.leaf_rgb, width_m, height_m, trunk_m)
    scene.front(x_m - width_m / 2, 0, width_m, height_m, z_m, drawn)


def _add_plot(
    scene: Scene, rng, city: City, light: Light, side: int, x_m: float, near_m: float, far_m: float, kind: str
):
    """Add one plot of land along the street: a house, or a wall, fence or hedge with something behind, or trees."""
    rgb = city.facade_rgb[rng.integers(5)]
    if kind == "house":
        height_m = 3.6 + 3.1 * int(rng.integers(city.storeys[0], city.storeys[1] + 1))
        drawn = shapes.facade(rng, rgb, height_m, light.lamps_lit)
        scene.side(side * x_m, near_m, far_m, height_m, drawn)
        depth_m = rng.uniform(10, 30)
        scene.front(x_m if side > 0 else -x_m - depth_m, 0, depth_m, height_m, near_m + 0.01, drawn)
        return
    if rng.random() < 0.6:  # a house in the background
        back_m, height_m = x_m + rng.uniform(5, 14), 3.6 + 3.1 * int(rng.integers(*city.storeys))
        drawn = shapes.facade(rng, rgb, height_m, light.lamps_lit)
        scene.side(side * back_m, near_m, far_m, height_m, drawn)
        scene.front(back_m if side > 0 else -back_m - 14, 0, 14, height_m, near_m + 0.02, drawn)
    for z_m in np.arange(near_m + 2, far_m, (5 if kind == "trees" else 9) * (1 + near_m / 40)):
        if rng.random() < 0.65:
            _add_tree(scene, rng, city, side * (x_m + rng.uniform(1, 5)), z_m, bush=rng.random() < 0.35)
    if kind == "wall":
        height_m = rng.uniform(1.0, 3.4)
        scene.side(side * x_m, near_m, far_m, height_m, shapes.wall(rng, rgb, height_m))
    elif kind == "fence":
        height_m = rng.uniform(0.9, 2.2)
        scene.side(side * x_m, near_m, far_m, height_m, shapes.fence(rng, rgb, height_m))
    elif kind == "hedge":
        height_m, length_m = rng.uniform(0.8, 2.5), far_m - near_m
        scene.side(side * x_m, near_m, far_m, height_m, shapes.foliage(rng, city.leaf_rgb, length_m, height_m, 0.0))


def add_plots(
    scene: Scene, rng: np.random.Generator, city: City, light: Light, street: Street, staged: set[str]
) -> None:
    """Add both sides of the street, plot by plot, and what closes the view at its end."""
    kinds = np.array(["house", "wall", "fence", "hedge", "trees"])
    for side in (-1, 1):
        # Place staged plots where they are seen: in a plot that begins within the image.
        planned = [kind for kind in ("wall", "fence") if kind in staged and (kind == "wall") == (side < 0)]
        z_m = 1.5
        while z_m < FAR_M:
            far_m = z_m + rng.uniform(8, 26) * (1 + z_m / 80)  # less detail where little can be seen
            if z_m < street.crossing_m[0] < far_m:
                far_m = street.crossing_m[0]
            elif street.crossing_m[0] <= z_m < street.crossing_m[1]:
                z_m = street.crossing_m[1]
                continue
            kind = planned.pop() if planned and far_m > 16 else rng.choice(kinds, p=city.plot_odds)
            _add_plot(
                scene, rng, city, light, side, street.kerb(side).plots_m + rng.choice([0, 0, 1.5]), z_m, far_m, kind
            )
            z_m = far_m + rng.choice([0, 0, 0, 3.0])
    for _ in range(5):
        x_m, z_m = rng.uniform(-60, 60), rng.uniform(FAR_M, 1.6 * FAR_M)
        if rng.random() < 0.5:
            drawn = shapes.facade(rng, city.facade_rgb[rng.integers(5)], 18, light.lamps_lit)
            scene.front(x_m - 15, 0, 30, rng.uniform(8, 18), z_m, drawn)
        else:
            scene.front(x_m - 15, 0, 30, 9, z_m, shapes.foliage(rng, city.leaf_rgb, 30, 9, 0.0))


def add_furniture(scene: Scene, rng: np.random.Generator, city: City, street: Street, staged: set[str]) -> None:
    """Add lamp posts, signs, traffic lights, street trees and bins along the kerbs."""
    for side in (-1, 1):
        kerb = street.kerb(side)
        x_m, spacing_m = side * (kerb.edge_m + 0.5), rng.uniform(14, 28)
        for z_m in np.arange(rng.uniform(4, 14), 90, spacing_m):
            scene.front(x_m, 0, rng.uniform(0.16, 0.3), rng.uniform(5, 9), z_m, shapes.pole(rng))
        for z_m in np.arange(rng.uniform(5, 12), 80, 8.0):
            if rng.random() < city.trees * (1.3 if kerb.verge_m else 0.6):
                _add_tree(scene, rng, city, side * (kerb.edge_m + 0.7 + 0.5 * kerb.verge_m), z_m)
        for _ in range(rng.poisson(1.6) + ("sign" in staged)):
            add_sign(scene, rng, x_m + rng.normal(0, 0.3), rng.uniform(6, 32))
        for _ in range(rng.poisson(0.8)):
            width_m, height_m, z_m = rng.uniform(0.5, 1.2), rng.uniform(0.8, 1.4), rng.uniform(6, 40)
            bin_x_m = side * (kerb.walk_from_m + rng.uniform(0.2, kerb.walk_m))
            scene.front(bin_x_m, 0, width_m, height_m, z_m, shapes.clutter(rng, height_m))
    lit_m = street.crossing_m[0] - 1
    if "light" in staged and not lit_m < 30:
        lit_m = rng.uniform(10, 22)
    if np.isfinite(lit_m) and ("light" in staged or rng.random() < 0.7):
        for side in (-1, 1):
            add_traffic_light(
                scene, rng, side * (street.kerb(side).edge_m + 0.4), lit_m, arm_m=-side * rng.choice([0, 3.0])
            )


def add_sign(scene: Scene, rng: np.random.Generator, x_m: float, z_m: float) -> None:
    width_m, foot_m = rng.uniform(0.7, 1.1), rng.uniform(1.9, 2.5)
    height_m = width_m * rng.choice([1, 1, 1, 1.5, 0.5])
    scene.front(x_m - 0.06, 0, 0.12, foot_m + 0.2, z_m, shapes.pole(rng))
    for level in range(int(rng.integers(1, 3))):
        drawn = shapes.traffic_sign(rng, width_m, height_m)
        scene.front(x_m - width_m / 2, foot_m + level * (height_m + 0.05), width_m, height_m, z_m - 0.05, drawn)


def add_traffic_light(scene: Scene, rng: np.random.Generator, x_m: float, z_m: float, arm_m: float) -> None:
    """Add a pole with a signal at its head and, when arm_m is not 0, an arm over the road with another one."""
    width_m, height_m = rng.uniform(0.4, 0.55), rng.uniform(1.0, 1.35)
    post = shapes.pole(rng)
    scene.front(x_m - 0.08, 0, 0.16, 5.2 if arm_m else 2.6, z_m, post)
    scene.front(x_m - width_m / 2, 2.4, width_m, height_m, z_m - 0.05, shapes.traffic_light(rng, width_m, height_m))
    if arm_m:
        scene.front(min(x_m, x_m + arm_m), 5.1, abs(arm_m), 0.14, z_m, post)
        drawn = shapes.traffic_light(rng, width_m, height_m)
        scene.front(x_m + arm_m - width_m / 2, 4.5, width_m, height_m, z_m - 0.05, drawn)


def add_traffic(scene: Scene, rng: np.random.Generator, city: City, street: Street, staged: set[str]) -> None:
    """Add moving vehicles, one queue per lane, parked ones along the kerbs, and one crossing in the side street."""
    cars, heavy = ["hatchback", "saloon", "van"], ["box truck", "flatbed", "bus"]

    def add(kind: str, x_m: float, z_m: float, oncoming: bool, crossing: bool = False) -> None:
        scene.add(z_m, vehicle(rng, kind, x_m, z_m, oncoming=oncoming, crossing=crossing))

    lane_m = -2 * street.lane_lines_m[0]
    if "train" in staged:
        add("train", street.rails_m, rng.uniform(5, 14), bool(rng.random() < 0.5))
    elif np.isfinite(street.rails_m) and rng.random() < 0.3:
        add("train", street.rails_m, rng.uniform(15, 60), True)
    queue = [kind for kind in ("bus", "truck", "car") if kind in staged]
    for place, x_m in enumerate((0.0, -lane_m)):
        if x_m and np.isfinite(street.rails_m):
            continue
        z_m = rng.uniform(7, 14) if queue else rng.uniform(9, 45)
        for _ in range(3):
            if queue:
                kind = {"bus": "bus", "truck": rng.choice(heavy[:2]), "car": rng.choice(cars)}[queue.pop()]
            elif rng.random() < 0.6:
                kind = rng.choice(heavy) if rng.random() < 0.12 else rng.choice(cars)
            else:
                continue
            add(kind, x_m + rng.normal(0, 0.2), z_m, oncoming=place == 1)
            z_m += rng.uniform(14, 30)
    for side in (-1, 1):
        for z_m in np.arange(rng.uniform(3, 8), 60, 6.3) if street.kerb(side).parking_m else ():
            if rng.random() < city.parked and not street.crossing_m[0] - 8 < z_m < street.crossing_m[1]:
                kind = rng.choice(heavy[:2]) if rng.random() < 0.03 else rng.choice(cars)
                add(kind, side * (street.kerb(side).edge_m - 1.0), z_m, oncoming=side < 0)
    if np.isfinite(street.crossing_m[0]) and rng.random() < 0.6:
        kind = rng.choice(heavy) if rng.random() < 0.25 else rng.choice(cars)
        add(kind, rng.uniform(-9, 9), np.float64(np.mean(street.crossing_m)), bool(rng.random() < 0.5), crossing=True)


def add_people(scene: Scene, rng: np.random.Generator, city: City, street: Street, staged: set[str]) -> None:
    """Add pedestrians alone and in groups, riders in the road, two-wheelers parked on the sidewalks."""

    def ride(x_m: float, z_m: float, motor: bool, ridden: bool, profile: bool) -> None:
        scene.add(z_m, two_wheeler(rng, x_m, z_m, motor=motor, ridden=ridden, profile=profile))

    for side in (-1, 1):
        kerb = street.kerb(side)
        for _ in range(rng.poisson(city.crowd) + (side > 0 and "person" in staged)):
            x_m, z_m = side * (kerb.walk_from_m + rng.uniform(0, kerb.walk_m)), rng.uniform(5, 32)
            for number in range(int(rng.choice([1, 1, 1, 2, 3]))):
                z_m = z_m + rng.uniform(-0.4, 0.4)
                scene.add(z_m, person(rng, x_m + 0.6 * number, z_m))
        for _ in range(rng.poisson(0.8)):
            x_m, z_m = side * (kerb.walk_from_m + rng.uniform(0.2, 1.2)), rng.uniform(5, 22)
            ride(x_m, z_m, bool(rng.random() < 0.25), False, bool(rng.random() < 0.6))
    if np.isfinite(street.crossing_m[0]):
        for _ in range(rng.poisson(0.7)):
            z_m = street.crossing_m[0] - rng.uniform(1, 3.5)
            scene.add(z_m, person(rng, rng.uniform(-5, 5), z_m))
    kerb_m = street.right.edge_m - street.right.parking_m - 0.6
    planned = {
        "motorcycle": (True, False),
        "motorcyclist": (True, True),
        "cyclist": (False, True),
        "bicycle": (False, False),
    }
    for name, (motor, ridden) in planned.items():
        if name in staged or (ridden and rng.random() < 0.1):
            z_m = rng.uniform(4.5, 10) if name in staged else rng.uniform(8, 35)
            x_m = rng.uniform(-0.5, 1) * kerb_m if ridden else street.right.walk_from_m + rng.uniform(0, 0.8)
            ride(x_m, z_m, motor, ridden, bool(rng.random() < 0.4))
