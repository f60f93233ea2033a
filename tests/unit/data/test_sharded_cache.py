"""A cache in shards: the values and crops of one in a file, and a changed frame that changes its shard alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.data import shards
from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import TeacherCache
from segdistill.params.model import ViewLimitParams
from segdistill.teacher_logits.build import build_cache
from support.cached_teacher import COMPUTE, FRAMES, SCALE, VIEWS, logits_params

pytestmark = pytest.mark.usefixtures("one_thread")
LIMIT = ViewLimitParams(distill_steps=1, finetune_steps=0, batch_size=2)
OPTIONS = {
    "float16": {},
    "8 bits": {"dtype": "uint8"},
    "mirrored": {"mirrored": True, "dtype": "uint8"},
    "limited": {"limit_views_to": LIMIT, "mirrored": True},
    "features": {"feature_channels": 8},
    "limited features": {"feature_channels": 8, "limit_views_to": LIMIT},
}


@pytest.fixture
def build(opened, tmp_path, monkeypatch):
    """Build and open a cache in shards of so many frames; crop by crop, because rounding depends on the batch."""

    def build(frames_per_shard: int, kind: str = "views", split=opened.split, **changed) -> TeacherCache:
        monkeypatch.setattr(shards, "FRAMES_PER_SHARD", frames_per_shard)
        params, out = logits_params().model_copy(update={"batch_size": 1} | changed), tmp_path / str(len(built))
        build_cache(kind, out, split, opened.spec, params, COMPUTE)
        built.append(TeacherCache(kind, opened.spec, out))
        return built[-1]

    built: list[TeacherCache] = []
    return build


def arrays(folder: Path) -> dict[str, list[np.ndarray]]:
    """The shards of each array, by its name."""
    found: dict[str, list[np.ndarray]] = {}
    for file in sorted(folder.glob("*.npy")):
        found.setdefault(file.stem.partition("-")[0], []).append(np.load(file))
    return found


@pytest.mark.parametrize(
    ("kind", "changed"), [*(("views", one) for one in OPTIONS.values()), ("frame", {}), ("frame", OPTIONS["8 bits"])]
)
def test_cache_in_shards_has_the_values_of_one_in_a_file(opened, build, kind, changed):
    whole, sharded = build(100, kind, **changed), build(2, kind, **changed)
    expected, found = arrays(whole.folder), arrays(sharded.folder)
    assert found.keys() == expected.keys()
    for name, parts in found.items():
        assert len(parts) == (1 if name == "rows" else 2)
        assert np.array_equal(np.concatenate(parts), *expected[name])
    batches = BatchSampler(1, "distill", FRAMES, VIEWS, 2, 0.5, 0.0)
    for step in range(1 if changed.get("limit_views_to") else 6):
        indices = batches.indices(step)
        origins = opened.spec.origins()[indices.frames, indices.views]
        for one, two in ((whole.stored, sharded.stored), (whole.features, sharded.features)):
            if one is None:
                assert two is None
                continue
            assert one.prefetch(indices, origins) == two.prefetch(indices, origins)
            for part, other in zip(one.crop(indices, origins), two.crop(indices, origins), strict=True):
                assert (part is None and other is None) or np.array_equal(part, other)
            two.drop_pages()


def test_shard_without_a_stored_view_is_empty(opened, build):
    cache = build(1, limit_views_to=LIMIT.model_copy(update={"batch_size": 1}))
    lengths = [len(part) for part in arrays(cache.folder)["logits"]]
    assert sorted(lengths) == [0, 0, 1]
    indices = BatchSampler(1, "distill", FRAMES, VIEWS, 1, 0.0, 0.0).indices(0)
    assert cache.stored.crop(indices, np.zeros((1, 2), int)).values.shape[0] == 1


def test_changed_frame_changes_its_shard_alone(opened, build):
    before = build(1, dtype="uint8")
    images = np.array(opened.split.images)
    images[1] = 255 - images[1]
    after = build(1, split=opened.split._replace(images=images), dtype="uint8")
    files = {file.name for file in before.folder.iterdir()}
    assert {name for name in files if (before.folder / name).read_bytes() != (after.folder / name).read_bytes()} == {
        *("logits-00001.npy", "scale-00001.npy"),
        "manifest.json",  # it says how far the teacher is from symmetric, measured on some views
    }


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["arrays"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_missing_and_foreign_shards_are_refused_by_name(opened, build):
    cache = build(2, dtype="uint8")
    whole = (cache.folder / "logits-00001.npy").read_bytes()
    (cache.folder / "logits-00001.npy").write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"logits-00001\.npy: unreadable .*; run: dvc repro teacher-logits"):
        TeacherCache("views", opened.spec, cache.folder)
    (cache.folder / "logits-00001.npy").write_bytes((cache.folder / "logits-00000.npy").read_bytes())
    with pytest.raises(UserError, match=r"logits-00001\.npy: holds uint8 \[2, .*, its manifest says uint8 \[1, "):
        TeacherCache("views", opened.spec, cache.folder)


def test_manifest_whose_shards_do_not_go_together_is_refused(opened, build):
    cache = build(2, dtype="uint8")
    np.save(cache.folder / "scale-00001.npy", np.load(cache.folder / "scale-00001.npy").astype(np.float32))
    edit(cache.folder, lambda arrays: arrays["scale-00001.npy"].update(dtype="float32"))
    with pytest.raises(UserError, match="its manifest describes shards of different shapes or types; run: dvc repro"):
        TeacherCache("views", opened.spec, cache.folder)
    edit(cache.folder, lambda arrays: arrays.pop("scale-00001.npy"))
    with pytest.raises(UserError, match=rf"its manifest describes logits-00000\.npy, .*{SCALE} alone"):
        TeacherCache("views", opened.spec, cache.folder)
    edit(cache.folder, lambda arrays: arrays.pop("logits-00001.npy"))
    with pytest.raises(UserError, match=r"its arrays are of \[2, 2\] frames and views, \[3, 2\] are needed"):
        TeacherCache("views", opened.spec, cache.folder)
