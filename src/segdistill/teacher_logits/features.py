"""The teacher's features of the stored views: few channels of 8 bits, next to the logits of the same forward pass.

A backbone gives hundreds or thousands of channels, which are far from independent: their first principal components
keep most of the variance in a fraction of the bytes.

Shapes: B crops, n cells of all sample crops, F channels of the teacher, D channels stored, s/t their cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segdistill.core.errors import UserError
from segdistill.core.log import logger
from segdistill.data.prepared import Split
from segdistill.data.sampling import ViewSpec
from segdistill.data.teacher_cache import stored_grid
from segdistill.nets.device import TorchPredictor
from segdistill.nets.features import HasFeatures
from segdistill.nets.resize import upsample
from segdistill.params.archs import FEATURE_STRIDE
from segdistill.params.model import TeacherLogitsParams
from segdistill.teacher.model import Teacher, TrainFrameTeacher
from segdistill.teacher_logits.windows import evenly_spaced_views, read_crops, view_windows

# Views on which the principal components are fitted, evenly spread: thousands of cells, at the cost of 64 forwards.
SAMPLE_VIEWS = 64


class Projection(NamedTuple):
    """What turns features (..., F) into stored ones (..., D): (features - mean) @ basis.

    Attributes:
        mean: (F,)
        basis: (F, D)
        variance_share: what the D components keep of the variance of the sample.
    """

    mean: Tensor
    basis: Tensor
    variance_share: float

    @property
    def facts(self) -> dict[str, float]:
        """Return how the features are made, for the manifest."""
        return {
            "stride": FEATURE_STRIDE,
            "channels": len(self.mean),
            "variance_share": round(self.variance_share, 6),
        }


def feature_projection(
    teacher: Teacher, learned_from: TrainFrameTeacher, split: Split, spec: ViewSpec, params: TeacherLogitsParams
) -> Projection:
    """Return the projection of the features that are stored, fitted on some of the views, and log what it keeps.

    Raises:
        UserError: the teacher is not one torch network, or has no features, or too few.
    """
    predict, found = teacher.predict, f"teacher_logits.feature_channels: found {params.feature_channels}"
    if learned_from.cross_fit:
        raise UserError(f"{found}; a cross-fitted teacher is more than one torch network, and allowed is 0")
    if not isinstance(predict, TorchPredictor):
        raise UserError(f"{found}; {teacher.description} is more than one torch network, and allowed is 0")
    if not isinstance(predict.net, HasFeatures):
        raise UserError(f"{found}; {teacher.description} has no method features_and_logits, and allowed is 0")
    windows = view_windows(spec, evenly_spaced_views(spec, SAMPLE_VIEWS))
    sample = read_crops(split, windows, spec.crop_px, params.batch_size)
    projection = fit_projection(predict, (images for _, images, _ in sample), params.feature_channels)
    logger.info(
        "teacher-logits: %d of %d feature channels keep %.1f%% of the variance",
        params.feature_channels,
        len(projection.mean),
        100 * projection.variance_share,
    )
    return projection


def fit_projection(teacher: TorchPredictor, crops: Iterable[np.ndarray], channels: int) -> Projection:
    """Return the projection to the first principal components of the teacher's features of `crops`, uint8 (B, H, W, 3).

    One number scales it, so that what is stored has a mean square of 1 and a loss the same size for every teacher. The
    components keep their sizes relative to each other: squared distances are those of the teacher's own features, but
    for the components that are left out.

    Raises:
        UserError: the teacher has fewer channels, or features that are not finite.
    """
    count, sums_F, squares_FF = 0, torch.zeros(()), torch.zeros(())
    for images in crops:
        features_nF = _on_grid(teacher, images)[0].flatten(0, 2).double()
        count += len(features_nF)
        sums_F = sums_F + features_nF.sum(0).cpu()
        squares_FF = squares_FF + (features_nF.T @ features_nF).cpu()
    if len(sums_F) < channels:
        raise UserError(
            f"teacher_logits.feature_channels: found {channels}; the features of this teacher have {len(sums_F)} "
            "channels, and allowed are at most as many"
        )
    if not squares_FF.isfinite().all():
        raise UserError("teacher: a feature is not finite; no cache written")
    mean_F = sums_F / count
    variances, components = torch.linalg.eigh(squares_FF / count - mean_F.outer(mean_F))  # in ascending order
    kept, basis_FD = variances.flip(0)[:channels].clamp(min=0), components.flip(1)[:, :channels]
    # A component is as good as its negative: take that whose largest weight is positive.
    signs_1D = basis_FD.gather(0, basis_FD.abs().argmax(0, keepdim=True)).sign()
    root_mean_square = float(kept.mean().sqrt()) or 1.0  # 0 of features that are the same everywhere
    share = float(kept.sum() / variances.sum()) if variances.sum() > 0 else 1.0
    return Projection(mean_F.float(), (basis_FD * signs_1D / root_mean_square).float(), share)


class ProjectedFeatures:
    """A teacher of logits that also gives the projected features of the images that it saw last.

    Attributes:
        last: float32 (B, s, t, D).
    """

    last: np.ndarray

    def __init__(self, teacher: TorchPredictor, projection: Projection) -> None:
        self.teacher, self.projection = teacher, projection

    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return the logits float32 (B, C, h, w) of uint8 images, and keep the features of the same pass."""
        features_BstF, logits = _on_grid(self.teacher, images_BHW3)
        mean_F, basis_FD = (part.to(features_BstF.device) for part in self.projection[:2])
        self.last = ((features_BstF - mean_F) @ basis_FD).cpu().numpy()
        return logits


def _on_grid(teacher: TorchPredictor, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the features (B, s, t, F) at the stored stride, and the logits of the same pass."""
    features_BFst, logits = teacher.features_and_logits(images_BHW3)
    grid = stored_grid(images_BHW3.shape[1:3], FEATURE_STRIDE)
    if tuple(features_BFst.shape[-2:]) != grid:
        features_BFst = upsample(features_BFst, grid)
    return features_BFst.permute(0, 2, 3, 1), logits
