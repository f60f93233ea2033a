"""A cache that is damaged or was made from something else is refused with the difference; a bad one is not written."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.data.teacher_cache import ROWS, TeacherCache
from segdistill.params.model import ViewLimitParams
from segdistill.teacher_logits.build import build_cache
from support.cached_teacher import CLASSES, COMPUTE, FRAMES, LOGITS, SCALE, VIEWS, floats, logits_params, write_teacher

pytestmark = pytest.mark.usefixtures("one_thread")
OTHER_SPECS = {
    "seed": 2,
    "crop_px": (32, 32),
    "data_fingerprint": "other",
    "stride": 8,
    "views": 3,
    "frames": 4,
    "frame_px": (48, 96),
    "scale_range": (0.5, 2.0),
}


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("kind", ["views", "frame"])
@pytest.mark.parametrize("teacher", [{"spoil": float("nan")}, {"scale": 1e12}])
def test_no_cache_is_written_of_logits_that_are_not_finite(opened, tmp_path, monkeypatch, kind, teacher, dtype):
    write_teacher(tmp_path / "models" / "teacher", **teacher)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"logit of frame street0 is not finite as {dtype}; no cache written"):
        build_cache(kind, tmp_path / "out" / kind, opened.split, opened.spec, logits_params(dtype), COMPUTE)
    assert not (tmp_path / "out").exists()


def test_logits_that_are_not_finite_leave_an_earlier_cache_unchanged(opened, copied, tmp_path, monkeypatch):
    write_teacher(tmp_path / "models" / "teacher", spoil=float("inf"))
    monkeypatch.chdir(tmp_path)
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    with pytest.raises(UserError, match="no cache written"):
        build_cache("views", copied, opened.split, opened.spec, logits_params(), COMPUTE)
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "scratch", "views"]


@pytest.mark.parametrize("key", OTHER_SPECS)
def test_cache_of_another_spec_is_refused(opened, copied, key):
    with pytest.raises(UserError, match=f"{key} is .* there, .* is needed"):
        TeacherCache("views", replace(opened.spec, **{key: OTHER_SPECS[key]}), copied)


@pytest.mark.parametrize("found", [[0.5, 2.0], [0.5, 1.0], None])
def test_cache_of_scaled_views_is_refused_where_unscaled_ones_are_needed(opened, copied, found):
    manifest = json.loads((copied / "manifest.json").read_text())
    assert "scale_range" not in manifest
    (copied / "manifest.json").write_text(json.dumps(manifest | {"scale_range": found}))
    with pytest.raises(UserError, match=r"scale_range is .* there, \[1\.0, 1\.0\] is needed"):
        TeacherCache("views", opened.spec, copied)


def test_cache_of_another_normalisation_is_refused(opened, copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["normalisation"]["mean"] = [0.5] * 3
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="normalisation is .* there, .* is needed"):
        TeacherCache("views", opened.spec, copied)


def test_cache_of_another_kind_is_refused(opened, copied):
    with pytest.raises(UserError, match="kind is 'views' there, 'frame' is needed"):
        TeacherCache("frame", opened.spec, copied)


@pytest.fixture
def in_8_bits(opened, tmp_path):
    """A cache of views as uint8, which a test may damage."""
    build_cache("views", tmp_path / "uint8", opened.split, opened.spec, logits_params("uint8"), COMPUTE)
    return tmp_path / "uint8"


def test_cache_that_fits_is_opened(opened, copied, in_8_bits):
    for folder in (copied, in_8_bits):
        assert floats(TeacherCache("views", opened.spec, folder)).shape == (6, 8, 12, CLASSES)


@pytest.mark.parametrize("name", [LOGITS, SCALE])
@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:0], lambda whole: whole[:50], lambda whole: whole + b"x", None]
)
def test_truncated_longer_and_missing_arrays_are_refused(opened, in_8_bits, name, damage):
    whole = (in_8_bits / name).read_bytes()
    (in_8_bits / name).unlink()
    if damage is not None:
        (in_8_bits / name).write_bytes(damage(whole))
    with pytest.raises(UserError, match=rf"{name}: unreadable .*; run: dvc repro teacher-logits"):
        TeacherCache("views", opened.spec, in_8_bits)


def test_logits_of_another_shape_are_refused(opened, copied):
    np.save(copied / LOGITS, np.zeros((FRAMES, VIEWS, 8, 12, CLASSES + 1), np.float16))
    with pytest.raises(
        UserError, match=r"holds float16 \[3, 2, 8, 12, 7\], its manifest says float16 \[3, 2, 8, 12, 6"
    ):
        TeacherCache("views", opened.spec, copied)


def test_logits_of_another_precision_are_refused(opened, copied, in_8_bits):
    shutil.copyfile(copied / LOGITS, in_8_bits / LOGITS)
    with pytest.raises(UserError, match=r"holds float16 .*, its manifest says uint8"):
        TeacherCache("views", opened.spec, in_8_bits)


def forget(folder: Path, *path: str) -> None:
    """Take the entry at `path` out of the manifest in `folder`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    *sections, key = path
    del functools.reduce(dict.__getitem__, sections, manifest)[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("arrays",), "its manifest describes no arrays"),
        (("arrays", LOGITS, "shape"), r"its manifest says \{'dtype': 'uint8'\} of logits-00000\.npy"),
        (("arrays", SCALE), r"its manifest describes logits-00000\.npy alone"),
        (("teacher_sha256",), "its manifest names no teacher"),
    ],
)
def test_manifest_that_says_too_little_is_refused(opened, in_8_bits, path, message):
    forget(in_8_bits, *path)
    with pytest.raises(UserError, match=f"{message}; run: dvc repro teacher-logits"):
        TeacherCache("views", opened.spec, in_8_bits)


@pytest.fixture
def limited(opened, tmp_path):
    """A cache of the views that one step draws, which a test may damage."""
    limit_views_to = ViewLimitParams(distill_steps=1, finetune_steps=0, batch_size=2)
    params = logits_params().model_copy(update={"limit_views_to": limit_views_to})
    build_cache("views", tmp_path / "limited", opened.split, opened.spec, params, COMPUTE)
    return tmp_path / "limited"


@pytest.mark.parametrize("row", [-1, 1, 99])
def test_rows_that_do_not_fit_the_stored_views_are_refused(opened, limited, row):
    rows = np.load(limited / ROWS)
    rows[rows == 0] = row
    np.save(limited / ROWS, rows)
    with pytest.raises(UserError, match=r"rows\.npy: does not name each of the \d stored views once; run: dvc repro"):
        TeacherCache("views", opened.spec, limited)


def test_limited_views_without_rows_are_refused(opened, limited):
    forget(limited, "arrays", ROWS)
    with pytest.raises(UserError, match=r"arrays are of \[\] frames and views, \[3, 2\] are needed"):
        TeacherCache("views", opened.spec, limited)


@pytest.mark.parametrize("damage", ["missing folder", "no manifest", "no JSON"])
def test_folder_without_a_manifest_is_refused(opened, copied, damage):
    if damage == "missing folder":
        shutil.rmtree(copied)
    elif damage == "no manifest":
        (copied / "manifest.json").unlink()
    else:
        (copied / "manifest.json").write_text(json.dumps(opened.spec.facts())[:40])
    with pytest.raises(UserError, match="no readable manifest.*dvc repro teacher-logits"):
        TeacherCache("views", opened.spec, copied)
