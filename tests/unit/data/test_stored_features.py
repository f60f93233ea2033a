"""Features in the cache: principal components against NumPy, 8 bits, the same views and flips as the logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import TeacherCache
from segdistill.data.transforms import normalize
from segdistill.nets.device import TorchPredictor
from segdistill.nets.registry import build
from segdistill.params.model import ViewLimitParams
from segdistill.teacher.model import Teacher
from segdistill.teacher_logits import build as build_module
from segdistill.teacher_logits.build import build_cache
from support.cached_teacher import (
    ARCH,
    CLASSES,
    COMPUTE,
    CROP_PX,
    FEATURES,
    FEATURES_SCALE,
    FRAMES,
    LOGITS,
    VIEWS,
    indices_of,
    logits_params,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CHANNELS, GRID = 8, (2, 3)  # crops are 32x48, features one cell per 16 pixels


@pytest.fixture
def build_with(opened, tmp_path):
    """Build a cache of views in `tmp_path / name` whose params differ by `changed`, and open it."""

    def build_with(name: str = "views", **changed) -> TeacherCache:
        params = logits_params().model_copy(update={"feature_channels": CHANNELS} | changed)
        build_cache("views", tmp_path / name, opened.split, opened.spec, params, COMPUTE)
        return TeacherCache("views", opened.spec, tmp_path / name)

    return build_with


def views_of(opened) -> np.ndarray:
    """Every crop view, uint8 (N, K, H, W, 3)."""
    height, width = CROP_PX
    return np.stack(
        [
            [image[top : top + height, left : left + width] for top, left in corners]
            for image, corners in zip(opened.split.images, opened.spec.origins(), strict=True)
        ]
    )


@torch.inference_mode()
def backbone_output(images_BHW3: np.ndarray) -> np.ndarray:
    """Return what the backbone of the teacher gives, float64 (B, s, t, F)."""
    torch.manual_seed(0)
    net = build(ARCH, CLASSES).eval()
    return net.backbone(normalize(torch.from_numpy(images_BHW3)))[1].permute(0, 2, 3, 1).double().numpy()


def restored(cache: TeacherCache) -> np.ndarray:
    """The stored features, float64 (N, K, s, t, D)."""
    offset, step = np.moveaxis(np.load(cache.folder / FEATURES_SCALE).astype(np.float64), -2, 0)
    return offset[..., None, :] + step[..., None, :] * np.load(cache.folder / FEATURES)


def principal_components(features: np.ndarray) -> np.ndarray:
    """The scores of the first components by NumPy's SVD, (..., D), with a mean square of 1; signs are arbitrary."""
    cells = features.reshape(-1, features.shape[-1])
    centred = cells - cells.mean(0)
    scores = (centred @ np.linalg.svd(centred, full_matrices=False)[2].T)[:, :CHANNELS]
    return (scores / np.sqrt((scores**2).mean())).reshape(*features.shape[:-1], CHANNELS)


def test_stored_features_are_the_principal_components_of_the_backbones_output(opened, build_with):
    # All 6 views are the sample.
    found = restored(build_with())
    wanted = principal_components(backbone_output(views_of(opened).reshape(-1, *CROP_PX, 3)))
    wanted = wanted.reshape(FRAMES, VIEWS, *GRID, CHANNELS)
    wanted *= np.sign((wanted * found).sum((0, 1, 2, 3)))
    half_step = np.ptp(wanted, axis=-2).max() / 255 / 2
    assert 0 < np.abs(found - wanted).max() < 1.1 * half_step + 2e-3
    assert (found**2).mean() == pytest.approx(1, abs=0.01)


def test_bytes_are_those_of_the_docs(build_with):
    cache = build_with()
    assert np.load(cache.folder / FEATURES).shape == (FRAMES, VIEWS, *GRID, CHANNELS)
    assert np.load(cache.folder / FEATURES).dtype == np.uint8
    assert np.load(cache.folder / FEATURES_SCALE).shape == (FRAMES, VIEWS, GRID[0], 2, CHANNELS)
    assert np.load(cache.folder / FEATURES_SCALE).dtype == np.float16
    facts = json.loads((cache.folder / "manifest.json").read_text())["features"]
    share = facts.pop("variance_share")
    assert facts == {"stride": 16, "channels": 320}
    assert 0.5 < share < 1


def test_variance_share_is_that_of_the_components_that_are_kept(opened, build_with):
    shares = [build_with(str(d), feature_channels=d).manifest.features["variance_share"] for d in (2, CHANNELS)]
    features = backbone_output(views_of(opened).reshape(-1, *CROP_PX, 3)).reshape(-1, 320)
    variances = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    wanted = [variances[:d].sum() / variances.sum() for d in (2, CHANNELS)]
    assert shares == pytest.approx(wanted, abs=1e-4)


def test_same_teacher_gives_the_same_bytes_and_the_logits_stay_as_they_were(build_with):
    one, two, without = build_with("one"), build_with("two"), build_with("none", feature_channels=0)
    for name in (FEATURES, FEATURES_SCALE, LOGITS, "manifest.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert (one.folder / LOGITS).read_bytes() == (without.folder / LOGITS).read_bytes()
    assert not (without.folder / FEATURES).exists()
    assert without.features is None
    assert "features" not in json.loads((without.folder / "manifest.json").read_text())


def taken(cache: TeacherCache, flip_probability: float) -> np.ndarray:
    """The features of a batch, float32 (B, s, t, D)."""
    indices = indices_of(flip_probability)
    crops = cache.features.crop(indices, cache.spec.origins()[indices.frames, indices.views])
    return crops.floats(COMPUTE.device).permute(0, 2, 3, 1).numpy()


def test_crops_have_the_features_of_their_view_and_flips_mirror_them(build_with):
    cache, indices = build_with(), indices_of(0.0)
    wanted = restored(cache)[indices.frames, indices.views]
    np.testing.assert_allclose(taken(cache, 0.0), wanted, atol=1e-5)
    assert np.array_equal(taken(cache, 1.0), taken(cache, 0.0)[:, :, ::-1])


def test_mirrored_views_have_features_of_their_own(build_with):
    cache, plain = build_with("mirrored", mirrored=True), build_with()
    assert np.load(cache.folder / FEATURES).shape == (FRAMES, 2 * VIEWS, *GRID, CHANNELS)
    assert np.array_equal(taken(cache, 0.0), taken(plain, 0.0))
    indices = indices_of(1.0)
    wanted = restored(cache)[indices.frames, VIEWS + indices.views]
    np.testing.assert_allclose(taken(cache, 1.0), wanted, atol=1e-5)
    assert not np.allclose(taken(cache, 1.0), taken(plain, 1.0), atol=0.05)


def test_limited_cache_has_features_of_the_stored_views_alone(opened, build_with):
    limit = ViewLimitParams(distill_steps=1, finetune_steps=0, batch_size=2)
    cache, whole = build_with("limited", limit_views_to=limit), build_with("whole")
    indices = BatchSampler(opened.spec.seed, "distill", FRAMES, VIEWS, 2, 0.0, 0.0).indices(0)
    origins = opened.spec.origins()[indices.frames, indices.views]
    found, wanted = (
        each.features.crop(indices, origins).floats(COMPUTE.device).permute(0, 2, 3, 1) for each in (cache, whole)
    )
    assert np.load(cache.folder / FEATURES).shape == (2, *GRID, CHANNELS)
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)


@pytest.mark.parametrize("arch", ["ddrnet23_slim", "pidnet_s"])
def test_features_of_a_finer_grid_are_averaged(opened, tmp_path, monkeypatch, arch):
    torch.manual_seed(0)
    net = build(arch, CLASSES, 8).eval()
    predict = TorchPredictor(net, COMPUTE)
    monkeypatch.setattr(build_module, "open_teacher", lambda *_: Teacher(predict, CLASSES, 1, arch))
    params = logits_params().model_copy(update={"feature_channels": CHANNELS})
    build_cache("views", tmp_path / "views", opened.split, opened.spec, params, COMPUTE)
    seen = []
    net.final_layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        net(normalize(torch.from_numpy(views_of(opened).reshape(-1, *CROP_PX, 3))))
    (features,) = seen
    coarse = torch.nn.functional.avg_pool2d(features, 2).permute(0, 2, 3, 1).double().numpy()
    wanted = principal_components(coarse).reshape(FRAMES, VIEWS, *GRID, CHANNELS)
    found = restored(TeacherCache("views", opened.spec, tmp_path / "views"))
    wanted *= np.sign((wanted * found).sum((0, 1, 2, 3)))
    np.testing.assert_allclose(found, wanted, atol=1.1 * np.ptp(wanted, axis=-2).max() / 255 / 2 + 5e-3)


def test_more_channels_than_the_teacher_has_are_refused(build_with):
    with pytest.raises(UserError, match=r"feature_channels: found 321; the features of this teacher have 320 channels"):
        build_with(feature_channels=321)


def test_teacher_without_features_is_refused(opened, build_with, monkeypatch):
    class Bare(torch.nn.Module):
        def forward(self, images):
            return images

    predict = TorchPredictor(Bare(), COMPUTE)
    monkeypatch.setattr(build_module, "open_teacher", lambda *_: Teacher(predict, 3, 1, "mine"))
    with pytest.raises(UserError, match=r"feature_channels: found 8; mine has no method features_and_logits"):
        build_with()
    monkeypatch.setattr(build_module, "open_teacher", lambda *_: Teacher(object(), 3, 1, "mine, flipped"))
    with pytest.raises(UserError, match=r"feature_channels: found 8; mine, flipped is more than one torch network"):
        build_with()


def test_features_that_are_not_finite_are_refused(opened, build_with, monkeypatch):
    class Nan(torch.nn.Module):
        def features_and_logits(self, images):
            return images * torch.nan, images

    predict = TorchPredictor(Nan(), COMPUTE)
    monkeypatch.setattr(build_module, "open_teacher", lambda *_: Teacher(predict, 3, 1, "mine"))
    with pytest.raises(UserError, match="teacher: a feature is not finite; no cache written"):
        build_with(feature_channels=2)


@pytest.mark.parametrize("name", [FEATURES, FEATURES_SCALE])
def test_missing_or_damaged_features_are_refused(opened, build_with, name):
    folder = build_with().folder
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name}: unreadable .*; run: dvc repro teacher-logits"):
        TeacherCache("views", opened.spec, folder)
    np.save(folder / name, np.zeros((FRAMES, VIEWS, *GRID, 3), np.uint8))
    with pytest.raises(UserError, match=rf"{name}: holds uint8 .*, its manifest says"):
        TeacherCache("views", opened.spec, folder)


def test_features_without_their_scale_are_refused(opened, build_with):
    path = build_with().folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["arrays"][FEATURES_SCALE]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"its manifest describes features-00000\.npy alone"):
        TeacherCache("views", opened.spec, path.parent)
