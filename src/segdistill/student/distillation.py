"""Distillation losses, and the teacher's logits of each batch.

Shapes: B batch, C classes, H/W pixels of the crop, h/w cells of the logits' own grid.
All losses are means, so that their scale depends neither on the batch nor on the crop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.data.sampling import generator
from segdistill.data.teacher_cache import stored_grid
from segdistill.formats.classes import IGNORE
from segdistill.nets.device import Compute
from segdistill.nets.features import HasFeatures
from segdistill.nets.registry import PROBE_PX, in_eval_mode
from segdistill.nets.resize import upsample
from segdistill.parallel import ranks
from segdistill.params.model import LossWeights, StudentSettings
from segdistill.training.batches import CropBatch


def kl(student_BChw: Tensor, teacher_BChw: Tensor, temperature: float, weights_Bhw: Tensor | None = None) -> Tensor:
    """Return KL(teacher || student) of the class distribution of each pixel at temperature T, mean over pixels.

    Hinton et al., arXiv:1503.02531, applied pixel by pixel (Liu et al., arXiv:1903.04197). With weights it is the
    weighted mean; 0 where all weights are.
    """
    student = F.log_softmax(student_BChw.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_BChw.float() / temperature, dim=1)
    if weights_Bhw is None:
        pixels = student.numel() // student.shape[1]
        return F.kl_div(student, teacher, reduction="sum", log_target=True) / pixels
    of_pixels_Bhw = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    weight = ranks.mean_count(weights_Bhw.sum(), torch.finfo(torch.float32).tiny)
    return (of_pixels_Bhw * weights_Bhw).sum() / weight


def channel_kl(student_BChw: Tensor, teacher_BChw: Tensor, temperature: float) -> Tensor:
    """Return the KL of each class map as a distribution over places, mean over classes.

    Shu et al., arXiv:2011.13256.
    """
    student = F.log_softmax(student_BChw.float().flatten(2) / temperature, dim=2)
    teacher = F.log_softmax(teacher_BChw.float().flatten(2) / temperature, dim=2)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / (student.shape[0] * student.shape[1])


def sigmoid_kl(student_BChw: Tensor, teacher_BChw: Tensor, temperature: float, clamp: float = 10.0) -> Tensor:
    """Return the KL between softmaxes over all classes and places of an image, of the sigmoid of the clamped logits.

    The loss of the light-student source, which used T = 0.01; mean over images.
    """

    def log_distribution(logits: Tensor) -> Tensor:
        score = torch.sigmoid(logits.float().clamp(-clamp, clamp))
        return F.log_softmax(score.flatten(1) / temperature, dim=1)

    student, teacher = log_distribution(student_BChw), log_distribution(teacher_BChw)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / student.shape[0]


DISTILLATION_LOSSES = {"kl": kl, "channel_kl": channel_kl, "sigmoid_kl": sigmoid_kl}


def pixel_weights(where: str, teacher_BChw: Tensor, labels_BHW: Tensor) -> Tensor:
    """Return how much each cell of the teacher's logits counts, float32 (B, h, w); see `distill_where` in params.

    right: 1 where the teacher predicts the label, else 0. label_probability: the probability that it gives the label.
    The label of a cell is that of the pixel at its centre. Where that pixel is void the teacher is all there is: 1.
    """
    assert where in ("right", "label_probability"), where
    rows, columns = (
        torch.arange(cells, device=labels_BHW.device) * pixels // cells + pixels // (2 * cells)
        for cells, pixels in zip(teacher_BChw.shape[-2:], labels_BHW.shape[-2:], strict=True)
    )
    labels_Bhw = labels_BHW[:, rows[:, None], columns].long()
    void_Bhw = labels_Bhw == IGNORE
    if where == "right":
        return ((teacher_BChw.argmax(1) == labels_Bhw) | void_Bhw).float()
    of_label_B1hw = labels_Bhw.masked_fill(void_Bhw, 0)[:, None]
    return teacher_BChw.float().softmax(1).gather(1, of_label_B1hw)[:, 0].masked_fill(void_Bhw, 1.0)


def combine_losses(label: Tensor, distillation: Tensor, weights: LossWeights, temperature: float) -> Tensor:
    """Return the weighted sum of both losses, the distillation loss times T^2."""
    return weights.label * label + weights.distill * temperature**2 * distillation


def add_feature_projection(net: HasFeatures, channels: int, seed: int) -> nn.Conv2d:
    """Add a 1x1 convolution `feature_projection` to `net`, from its features to `channels`, and return it.

    As a part of the network it trains with it, and checkpoints and averages of the weights cover it. It has to be
    removed from the trained network, which does not run it.
    """
    assert isinstance(net, nn.Module)
    with in_eval_mode(net):  # to see how many channels they have
        features, _ = net.features_and_logits(torch.zeros(1, 3, *PROBE_PX))
    torch.manual_seed(int(generator(seed, "feature projection").integers(2**63)))
    net.feature_projection = nn.Conv2d(features.shape[1], channels, 1)
    return net.feature_projection


class Distillation:
    """Adds the distillation loss to the label loss of a batch; the training loop calls it after the forward pass.

    Args:
        settings: loss weights, method, temperature, kl_resolution and distill_where of the run.
        compute: where the training runs.
        live_teacher: a network that runs in every step, for `online`; None where the batch has cached logits.
        projection: turns features of the student into those of the teacher, which the batch then has; None where the
            student learns from logits alone.
    """

    def __init__(
        self,
        settings: StudentSettings,
        compute: Compute,
        live_teacher: nn.Module | None = None,
        projection: nn.Module | None = None,
    ) -> None:
        self.settings, self.compute, self.live_teacher, self.projection = settings, compute, live_teacher, projection

    @property
    def reads_features(self) -> bool:
        """Return whether the loss reads the features of the student."""
        return self.projection is not None

    def __call__(
        self,
        label: Tensor,
        logits_BChw: Tensor,
        pixels_BCHW: Tensor,
        inputs_B3HW: Tensor,
        batch: CropBatch,
        features_BCst: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (total loss, distillation loss) of a batch; the total has the feature loss as well.

        Args:
            label: the label loss.
            logits_BChw: of the student, on its own grid.
            pixels_BCHW: the same, float32, upsampled to the crop.
            inputs_B3HW: of the student.
            batch: on the device of the training.
            features_BCst: of the student, on their own grid; None where it learns from logits alone.
        """
        settings = self.settings
        if self.live_teacher is None:
            teacher = batch.teacher_logits(self.compute.device)
            assert teacher is not None, "neither cached logits nor a live teacher"
        else:
            with torch.no_grad(), self.compute.autocast():
                teacher = self.live_teacher(inputs_B3HW).float()
        size = pixels_BCHW.shape[-2:] if settings.kl_resolution == "full" else teacher.shape[-2:]
        # Use the logits that are upsampled already, where the losses compare at full size.
        student = pixels_BCHW if size == pixels_BCHW.shape[-2:] else _on_grid(logits_BChw.float(), size)
        teacher = _on_grid(teacher, size)
        if settings.distill_where == "all":
            loss = DISTILLATION_LOSSES[settings.method](student, teacher, settings.temperature)
        else:  # of kl alone, which compares pixel by pixel
            weights = pixel_weights(settings.distill_where, teacher, batch.labels)
            loss = kl(student, teacher, settings.temperature, weights)
        total = combine_losses(label, loss, settings.loss_weights, settings.temperature)
        if self.projection is not None:
            assert features_BCst is not None
            total = total + settings.feature_weight * self.feature_loss(features_BCst, batch)
        return total, loss

    def feature_loss(self, features_BCst: Tensor, batch: CropBatch) -> Tensor:
        """Return the mean squared error of the projected features of the student.

        Stored features have a mean square of 1, so this is the share of their variance that the student misses. MSE
        after a projection by one 1x1 convolution did as well as costlier losses in arXiv:2604.25530.
        """
        assert self.projection is not None
        teacher = batch.teacher_features(self.compute.device)
        assert teacher is not None, "no cached features"
        with self.compute.autocast():
            projected = self.projection(_on_grid(features_BCst, teacher.shape[-2:]))
        return F.mse_loss(projected.float(), teacher)


class OnStoredGrid(nn.Module):
    """Resize the logits of a live teacher to the grid of the cache, so that all kinds of teacher compare alike."""

    def __init__(self, net: nn.Module, stride: int) -> None:
        super().__init__()
        self.net, self.stride = net, stride

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BChw, float32."""
        height_px, width_px = images_BCHW.shape[-2:]
        return _on_grid(self.net(images_BCHW).float(), stored_grid((height_px, width_px), self.stride))


def _on_grid(logits_BChw: Tensor, size: tuple[int, ...]) -> Tensor:
    return logits_BChw if tuple(logits_BChw.shape[-2:]) == tuple(size) else upsample(logits_BChw, size)
