"""teacher-logits reports how right the teacher is on what it stores, and ranks the labels that it doubts."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.data.prepared import PreparedData, Split
from segdistill.data.sampling import ViewSpec
from segdistill.data.teacher_cache import teacher_sha256
from segdistill.formats.classes import IGNORE, ClassTable, class_key
from segdistill.paths import TEACHER
from segdistill.teacher_logits.accuracy import SHOWN, TeacherAccuracy, at_cells, memorised
from segdistill.teacher_logits.build import teacher_logits
from support.tiny_city import tinier_params

METRICS = Path("metrics/teacher_logits")


def params_of(kinds=("views", "frame", "online")):
    return tinier_params(teacher_logits={"kinds": kinds, "dtype": "float32"})


@pytest.fixture
def here(city, monkeypatch):
    monkeypatch.chdir(city)
    return city


def frames_csv(kind: str) -> list[dict]:
    with (METRICS / kind / "frames.csv").open() as stream:
        return list(csv.DictReader(stream))


def stored(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what is stored, float32 (N, M, h, w, C), and the label in each cell's middle, by slicing (N, M, h, w)."""
    params, data = params_of(), PreparedData.open()
    stride = params.teacher_logits.stride
    logits = np.load(f"data/teacher_logits/{kind}/logits-00000.npy")
    if kind == "frame":
        return logits[:, None], np.array(data.train.labels)[:, None, stride // 2 :: stride, stride // 2 :: stride]
    spec = ViewSpec.of(data, params.distill.crop_px, params.teacher_logits.views, stride, params.seed)
    height, width = spec.crop_px
    crops = [
        [labels[top : top + height, left : left + width] for top, left in corners]
        for labels, corners in zip(data.train.labels, spec.origins(), strict=True)
    ]
    return logits, np.array(crops)[:, :, stride // 2 :: stride, stride // 2 :: stride]


@pytest.mark.parametrize("kind", ["views", "frame"])
def test_metrics_are_those_of_what_is_stored(here, kind):
    logits, labels = stored(kind)
    predicted, valid = logits.argmax(-1), labels != IGNORE
    found, names = read_json(METRICS / f"{kind}.json"), PreparedData.open().table.names
    assert found["crops"] == logits.shape[0] * logits.shape[1]
    assert found["cells"] == valid.sum() > 0
    assert found["overall_acc"] == pytest.approx((predicted == labels)[valid].mean())
    for number, name in enumerate(names):
        truly, said = labels == number, (predicted == number) & valid
        union = (truly | said).sum()
        iou = (truly & said).sum() / union if union else None
        assert found["class_iou"][class_key(name)] == pytest.approx(iou)
        recall = (truly & said).sum() / truly.sum() if truly.any() else None
        assert found["class_acc"][class_key(name)] == pytest.approx(recall)
    known = [iou for iou in found["class_iou"].values() if iou is not None]
    assert found["mean_iou"] == pytest.approx(np.mean(known))
    assert found["teacher_sha256"] == teacher_sha256(TEACHER)


def test_val_is_counted_on_the_same_grid(here):
    data, maps, stride = PreparedData.open(), np.load(TEACHER / "val_classes.npz"), params_of().teacher_logits.stride
    middle = (slice(None), slice(stride // 2, None, stride), slice(stride // 2, None, stride))
    predicted = np.stack([maps[str(index)] for index in range(len(data.val))])[middle]
    labels = np.array(data.val.labels)[middle]
    expected = (predicted == labels)[labels != IGNORE].mean()
    assert 0 < expected < 1
    for kind in ("views", "frame", "online"):
        assert read_json(METRICS / f"{kind}.json")["val"]["overall_acc"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["views", "frame"])
def test_every_frame_is_listed_with_its_own_shares(here, kind):
    logits, labels = stored(kind)
    valid, rows, names = labels != IGNORE, frames_csv(kind), PreparedData.open().train.names
    chances = torch.from_numpy(logits).softmax(-1).numpy()
    other = np.where((logits.argmax(-1) != labels) & valid, chances.max(-1), 0)
    assert sorted(int(row["frame"]) for row in rows) == list(range(len(names)))
    for row in rows:
        frame = int(row["frame"])
        cells, hits = valid[frame].sum(), (logits[frame].argmax(-1) == labels[frame]).sum()
        assert (row["name"], int(row["cells"])) == (names[frame], cells)
        assert float(row["accuracy"]) == pytest.approx(hits / cells, abs=1e-6)
        assert float(row["sure_of_another"]) == pytest.approx((other[frame] > 0.9).sum() / cells, abs=1e-6)
        assert float(row["confidence"]) == pytest.approx(other[frame].sum() / cells, abs=1e-5)
    order = [(float(row["sure_of_another"]), float(row["confidence"])) for row in rows]
    assert order == sorted(order, reverse=True)


def test_first_frames_have_images(here):
    first = {int(row["frame"]) for row in frames_csv("views")[:SHOWN]}
    images = sorted(path for path in (METRICS / "views").iterdir() if path.suffix != ".csv")
    assert {int(path.name[:5]) for path in images} == first
    assert len(images) == 4 * SHOWN
    assert sum(path.stat().st_size for path in images) < 100_000


def test_online_stores_nothing_and_says_so(here):
    found = read_json(METRICS / "online.json")
    assert (found["crops"], found["cells"], found["overall_acc"], found["mean_iou"]) == (0, 0, None, None)
    assert 0 < found["val"]["overall_acc"] < 1
    assert frames_csv("online") == []


def test_limited_views_are_measured_alone(here, tmp_path, monkeypatch):
    shutil.copytree(here / "data" / "prepared", tmp_path / "data" / "prepared")
    shutil.copytree(here / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    limit = {"distill_steps": 1, "finetune_steps": 0, "batch_size": 2}
    teacher_logits(tinier_params(teacher_logits={"kinds": ("views",), "limit_views_to": limit}), "views")
    found = read_json(METRICS / "views.json")
    assert found["crops"] == len(np.load("data/teacher_logits/views/logits-00000.npy")) == 2
    assert len(frames_csv("views")) == 2, "frames without a stored view are not ranked"


TABLE = ClassTable(("road", "car", "sky"), (7, 26, 23), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))


def street(frames: int = 4) -> SimpleNamespace:
    """Train frames of random labels in cells of 4 pixels, as much of the prepared data as counting takes."""
    cells = np.random.default_rng(0).integers(0, len(TABLE), (frames, 4, 6)).astype(np.uint8)
    labels = cells.repeat(4, 1).repeat(4, 2)
    labels[:, :4] = IGNORE
    split = Split(np.zeros((*labels.shape, 3), np.uint8), labels, tuple(f"street{i}" for i in range(frames)))
    return SimpleNamespace(train=split, table=TABLE, frame_groups={"train": ("town",) * frames})


def logits_of(labels_BHW: np.ndarray, certainty: float) -> np.ndarray:
    """Logits (B, h, w, C) of a teacher that gives every label that probability; road on void pixels."""
    _, height, width = labels_BHW.shape
    cells = at_cells(np.where(labels_BHW == IGNORE, 0, labels_BHW), (height // 4, width // 4))
    chances = np.full((*cells.shape, len(TABLE)), (1 - certainty) / (len(TABLE) - 1), np.float32)
    np.put_along_axis(chances, cells[..., None].astype(np.int64), certainty, -1)
    return np.log(chances)


def test_wrong_labels_rank_first():
    data = street()
    accuracy, truth = TeacherAccuracy(data, 4), np.array(data.train.labels)
    data.train.labels[2, 4:12] = (truth[2, 4:12] + 1) % len(TABLE)  # two of its three labelled rows of cells
    data.train.labels[1, 4:8] = (truth[1, 4:8] + 1) % len(TABLE)
    for frame in (0, 1, 2):
        accuracy.add(np.array([frame]), data.train.labels[[frame]], logits_of(truth[[frame]], 0.95))
    # Of frame 3 the teacher is everywhere wrong and never sure.
    others = np.where(truth[[3]] == IGNORE, IGNORE, (truth[[3]] + 1) % len(TABLE)).astype(np.uint8)
    accuracy.add(np.array([3]), data.train.labels[[3]], logits_of(others, 0.6))
    assert accuracy.ranked() == [2, 1, 3, 0]
    assert accuracy.sure_N.tolist() == [0, 6, 12, 0]
    assert accuracy.confidence_N == pytest.approx([0, 6 * 0.95, 12 * 0.95, 18 * 0.6])
    assert accuracy.cells_N.tolist() == [18] * 4


def test_middle_of_a_cell_is_compared():
    labels = np.arange(7 * 9, dtype=np.uint8).reshape(1, 7, 9)
    assert at_cells(labels[:, :4, :8], (1, 2)).tolist() == [[[2 * 9 + 2, 2 * 9 + 6]]]
    # A grid whose last cells hang over: 7 rows in 2 cells, 9 columns in 3.
    assert at_cells(labels, (2, 3)).tolist() == [[[9 + 1, 9 + 4, 9 + 7], [5 * 9 + 1, 5 * 9 + 4, 5 * 9 + 7]]]


@pytest.mark.parametrize(
    ("on_views", "on_val", "is_memorised"),
    [
        (0.99, 0.80, True),
        (0.84, 0.80, False),  # the teacher of a short training: as bad on its own frames
        (0.985, 0.963, False),  # a good teacher of Cityscapes
        (0.95, 0.88, False),
        (0.75, 0.90, False),
        (None, 0.9, False),
        (0.9, None, False),
    ],
)
def test_memorised_is_far_better_on_train_than_on_val(on_views, on_val, is_memorised):
    assert bool(memorised(on_views, on_val)) == is_memorised


def test_memorised_teacher_is_named_with_both_numbers(here, tmp_path, capsys):
    data = PreparedData.open()
    accuracy = TeacherAccuracy(data, 4)
    labels = np.array(data.train.labels)
    chances = np.eye(len(data.table), dtype=np.float32)[np.where(labels == IGNORE, 0, labels)][:, 2::4, 2::4]
    accuracy.read_val()
    accuracy.add(np.arange(len(labels)), labels, 10 * chances)
    accuracy.write(tmp_path, "views")
    on_val = read_json(tmp_path / "views.json")["val"]["overall_acc"]
    warning = capsys.readouterr().err
    assert "warning: teacher-logits: the teacher has memorised its train frames" in warning
    assert f"right on 100.0% of the pixels that students learn from, and on {on_val:.1%} of those of val" in warning
    assert read_json(tmp_path / "views.json")["memorised"] is True
    assert read_json(METRICS / "views.json")["memorised"] is False


def test_damaged_class_maps_of_val_are_one_message(here, tmp_path, monkeypatch):
    shutil.copytree(here / "models", tmp_path / "models")
    shutil.copytree(here / "data" / "prepared", tmp_path / "data" / "prepared")
    monkeypatch.chdir(tmp_path)
    (TEACHER / "val_classes.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"models/teacher/val_classes\.npz: no readable class maps of val \("):
        teacher_logits(params_of(), "views")
    assert not Path("data/teacher_logits").exists()
