"""The synthetic city: street scenes with Cityscapes labels, drawn by a formula.

It replaces Cityscapes where there is no copy of it, with the same folders, names and label ids, so that the whole
pipeline runs and can be tested anywhere. Every frame is a pure function of (seed, split, index, size): frames may
be drawn in any order, by any number of processes, and come out with the same bytes. Train and val are different cities.

`city.py` draws up a city, its weather and its streets, `scene.py` places things,
`shapes.py`, `traffic.py` and `ground.py` say what it looks like, and
`canvas.py` puts it into perspective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from segdistill.prepare.synthetic import scene as scenes
from segdistill.prepare.synthetic.canvas import Canvas
from segdistill.prepare.synthetic.city import sample_camera, sample_city, sample_light, sample_street
from segdistill.prepare.synthetic.ground import paint_ground, paint_hood, paint_sky

CITIES = {
    "train": ("alder", "birchwick", "cedarholm", "dunmere", "elmsford", "foxley", "glenrow", "hartmoor"),
    "val": ("ivyport", "juniper", "kestrel"),
}
FRAMES_PER_SEQUENCE = 4


def _place(split: str, index: int) -> tuple[int, int, int]:
    """Return the number of the city, of the sequence within it and of the frame within that; cities take turns."""
    if split not in CITIES:
        raise ValueError(f"split {split!r}: the synthetic city has {', '.join(CITIES)}")
    if index < 0:
        raise ValueError(f"frame {index}: frames are counted from 0")
    visit, city = divmod(index, len(CITIES[split]))
    return city, *divmod(visit, FRAMES_PER_SEQUENCE)


def _rng(*key: int | str) -> np.random.Generator:
    """Return a generator that depends on the key alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def frame_name(split: str, index: int) -> tuple[str, str]:
    """Return city and stem of a frame in the official pattern, such as ("alder", "alder_000003_000012")."""
    city, sequence, frame = _place(split, index)
    name = CITIES[split][city]
    return name, f"{name}_{sequence:06d}_{frame:06d}"


def render_frame(seed: int, split: str, index: int, size_px: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return image uint8 (H, W, 3) RGB and Cityscapes label ids uint8 (H, W) of one frame; `size_px` is (H, W)."""
    number, sequence, _ = _place(split, index)
    city = sample_city(_rng(seed, split, "city", number))
    drive = _rng(seed, split, "drive", number, sequence)
    light, camera = sample_light(drive), sample_camera(drive, size_px)
    rng = _rng(seed, split, "frame", index)
    # Each rare thing is in one random frame of every block, drawn for itself, so that none are tied together.
    block, turn = divmod(index, scenes.STAGED_EVERY)
    turns = _rng(seed, split, "staged", block).integers(scenes.STAGED_EVERY, size=len(scenes.STAGED))
    staged = {name for name, its_turn in zip(scenes.STAGED, turns, strict=True) if its_turn == turn}

    street = sample_street(rng, city, staged)
    scene = scenes.Scene()
    scenes.add_plots(scene, rng, city, light, street, staged)
    scenes.add_furniture(scene, rng, city, street, staged)
    scenes.add_traffic(scene, rng, city, street, staged)
    scenes.add_people(scene, rng, city, street, staged)

    canvas = Canvas(camera, light)
    paint_sky(canvas, rng)
    paint_ground(canvas, street, rng)
    scene.paint(canvas)
    if _rng(seed, split, "hood", number).random() < 0.7:
        paint_hood(canvas, rng)
    # Last, for it is the only draw whose length depends on the size: the scene is the same at every size.
    return _develop(canvas, rng), canvas.labels


def _develop(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Return the photograph uint8 (H, W, 3): lens and sensor add a slight blur, colour cast, exposure and grain."""
    light, rgb = canvas.light, canvas.rgb
    soft = rng.uniform(0.1, 0.24)  # weight of each neighbour
    before, after = slice(None, -1), slice(1, None)
    for low, high in (((..., before, slice(None)), (..., after, slice(None))), ((..., before), (..., after))):
        blurred = rgb * np.float32(1 - 2 * soft)
        neighbour = rgb * np.float32(soft)
        blurred[low] += neighbour[high]
        blurred[high] += neighbour[low]
        rgb = blurred
    rgb *= (np.float32(255 * light.exposure) * light.cast_rgb)[:, None, None]
    grain = np.float32(light.grain) * rng.standard_normal(rgb.shape[1:], dtype=np.float32)
    for number, plane in enumerate(rgb):  # one field, shifted, is as good as three
        plane += np.roll(grain, 7 * number, axis=1)
    np.clip(rgb, 0, 255, out=rgb)
    return np.ascontiguousarray(rgb.astype(np.uint8).transpose(1, 2, 0))


def _write_frame(frame: tuple[str, int], *, root: Path, seed: int, size_px: tuple[int, int]) -> None:
    from PIL import Image

    split, index = frame
    image, label_ids = render_frame(seed, split, index, size_px)
    city, stem = frame_name(split, index)
    for folder, array, kind in (("leftImg8bit", image, "leftImg8bit"), ("gtFine", label_ids, "gtFine_labelIds")):
        path = root / folder / split / city / f"{stem}_{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def write_city(
    root: Path,
    *,
    seed: int,
    train_frames: int,
    val_frames: int,
    size_px: tuple[int, int],
    workers: int = 1,
    written: Callable[[], object] = lambda: None,
) -> None:
    """Write both splits under `root` as an unpacked Cityscapes: leftImg8bit/ and gtFine/ with labelIds.

    `written` is called after each frame.
    """
    frames = [("train", index) for index in range(train_frames)] + [("val", index) for index in range(val_frames)]
    write = partial(_write_frame, root=Path(root), seed=seed, size_px=size_px)
    if workers <= 1:
        for frame in frames:
            write(frame)
            written()
        return
    with ProcessPoolExecutor(workers) as pool:
        for _ in pool.map(write, frames, chunksize=8):
            written()
