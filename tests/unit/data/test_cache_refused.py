"""A cache that is damaged, or was made from something else, is refused with what differs; a bad one is not written."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.data.teacher_cache import LOGITS, ROWS, SCALE, Teaching
from segdistill.params.model import ViewLimitParams
from segdistill.teacher_logits.build import build_cache
from support.cached_teacher import CLASSES, COMPUTE, FRAMES, VIEWS, floats, logits_params, write_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


CHANGES = {  # what else a cache may have been made from
    "seed": 2,
    "crop_px": [32, 32],
    "data_fingerprint": "other",
    "stride": 8,
    "views": 3,
    "frames": 4,
    "frame_px": [48, 96],
    "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
}


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("kind", ["views", "frame"])
@pytest.mark.parametrize("teacher", [{"spoil": float("nan")}, {"scale": 1e12}])
def test_logits_that_are_not_finite_leave_no_cache(opened, tmp_path, monkeypatch, kind, teacher, dtype):
    write_teacher(tmp_path / "models" / "teacher", **teacher)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"logit of frame street0 is not finite as {dtype}; no cache written"):
        build_cache(kind, tmp_path / "out" / kind, opened.split, opened.facts, logits_params(dtype), COMPUTE)
    assert list((tmp_path / "out").iterdir()) == []


def test_logits_that_are_not_finite_leave_an_earlier_cache_as_it_was(opened, copied, tmp_path, monkeypatch):
    write_teacher(tmp_path / "models" / "teacher", spoil=float("inf"))
    monkeypatch.chdir(tmp_path)
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    with pytest.raises(UserError, match="no cache written"):
        build_cache("views", copied, opened.split, opened.facts, logits_params(), COMPUTE)
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "views"]


@pytest.mark.parametrize("key", CHANGES)
def test_a_cache_of_something_else_is_refused(opened, copied, key):
    with pytest.raises(UserError, match=f"{key} is .* there, .* is needed"):
        Teaching("views", opened.facts | {key: CHANGES[key]}, copied)


def test_a_cache_of_another_kind_is_refused(opened, copied):
    with pytest.raises(UserError, match="kind is 'views' there, 'frame' is needed"):
        Teaching("frame", opened.facts, copied)


@pytest.fixture
def in_8_bits(opened, tmp_path):
    """A cache of views as uint8, that may be spoilt."""
    build_cache("views", tmp_path / "uint8", opened.split, opened.facts, logits_params("uint8"), COMPUTE)
    return tmp_path / "uint8"


def test_a_cache_that_fits_is_opened(opened, copied, in_8_bits):
    for folder in (copied, in_8_bits):
        assert floats(Teaching("views", opened.facts, folder)).shape == (6, 8, 12, CLASSES)


@pytest.mark.parametrize("name", [LOGITS, SCALE])
@pytest.mark.parametrize("kept_bytes", [0, 50, 300])
def test_truncated_arrays_are_refused(opened, in_8_bits, name, kept_bytes):
    whole = (in_8_bits / name).read_bytes()
    assert len(whole) > 400
    (in_8_bits / name).write_bytes(whole[:kept_bytes])
    with pytest.raises(UserError, match=rf"{name}: unreadable .*; run: dvc repro teacher-logits"):
        Teaching("views", opened.facts, in_8_bits)


def test_an_array_with_bytes_behind_it_is_refused(opened, copied):
    with (copied / LOGITS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"logits\.npy: unreadable \(\d+ bytes, its header describes \d+\)"):
        Teaching("views", opened.facts, copied)


@pytest.mark.parametrize("name", [LOGITS, SCALE])
def test_a_missing_array_is_refused(opened, in_8_bits, name):
    (in_8_bits / name).unlink()
    with pytest.raises(UserError, match=f"{name}: unreadable"):
        Teaching("views", opened.facts, in_8_bits)


def test_logits_of_another_shape_are_refused(opened, copied):
    np.save(copied / LOGITS, np.zeros((FRAMES, VIEWS, 8, 12, CLASSES + 1), np.float16))
    with pytest.raises(
        UserError, match=r"holds float16 \[3, 2, 8, 12, 7\], its manifest says float16 \[3, 2, 8, 12, 6"
    ):
        Teaching("views", opened.facts, copied)


def test_logits_of_another_precision_are_refused(opened, copied, in_8_bits):
    shutil.copyfile(copied / LOGITS, in_8_bits / LOGITS)
    with pytest.raises(UserError, match=r"holds float16 .*, its manifest says uint8"):
        Teaching("views", opened.facts, in_8_bits)


def forget(folder: Path, *path: str) -> None:
    """Take the entry at `path` out of the manifest in `folder`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    *sections, key = path
    del functools.reduce(dict.__getitem__, sections, manifest)[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_that_describes_no_arrays_is_refused(opened, copied):
    forget(copied, "arrays")
    with pytest.raises(UserError, match="its manifest describes no arrays"):
        Teaching("views", opened.facts, copied)


def test_bytes_without_their_scale_are_refused(opened, in_8_bits):
    forget(in_8_bits, "arrays", SCALE)
    with pytest.raises(UserError, match=r"its manifest describes logits\.npy alone"):
        Teaching("views", opened.facts, in_8_bits)


@pytest.fixture
def drawn_only(opened, tmp_path):
    """A cache of the views that one step draws, that may be spoilt."""
    limit_views_to = ViewLimitParams(distill_steps=1, finetune_steps=0, batch_size=2)
    params = logits_params().model_copy(update={"limit_views_to": limit_views_to})
    build_cache("views", tmp_path / "drawn", opened.split, opened.facts, params, COMPUTE)
    return tmp_path / "drawn"


@pytest.mark.parametrize("row", [-1, 1, 99])
def test_places_that_do_not_fit_the_stored_views_are_refused(opened, drawn_only, row):
    rows = np.load(drawn_only / ROWS)
    rows[rows == 0] = row
    np.save(drawn_only / ROWS, rows)
    with pytest.raises(UserError, match=r"rows\.npy: does not name each of the \d stored views once; run: dvc repro"):
        Teaching("views", opened.facts, drawn_only)


def test_views_without_their_places_are_refused(opened, drawn_only):
    forget(drawn_only, "arrays", ROWS)
    with pytest.raises(UserError, match=r"arrays are of \[\] frames and views, \[3, 2\] are needed"):
        Teaching("views", opened.facts, drawn_only)


def test_a_manifest_without_a_teacher_is_refused(opened, copied):
    forget(copied, "teacher_sha256")
    with pytest.raises(UserError, match="its manifest names no teacher"):
        Teaching("views", opened.facts, copied)


@pytest.mark.parametrize("spoil", ["missing folder", "no manifest", "no JSON"])
def test_a_folder_without_a_manifest_is_refused(opened, copied, spoil):
    if spoil == "missing folder":
        shutil.rmtree(copied)
    elif spoil == "no manifest":
        (copied / "manifest.json").unlink()
    else:
        (copied / "manifest.json").write_text(json.dumps(opened.facts)[:40])
    with pytest.raises(UserError, match="no readable manifest.*dvc repro teacher-logits"):
        Teaching("views", opened.facts, copied)
