"""The form of a metrics file: flat snake_case keys, one map of class names for class_iou."""

from __future__ import annotations

import math

from segdistill.base.errors import InputError

LEGEND = "classes.json"  # in a folder of pictures: names, label ids and colours of the classes, in their order


def figures_on_disk(figures: dict, class_names: list[str]) -> dict:
    """Figures of an evaluation as a metrics file has them: class_iou by class name, undefined figures None.

    Raises:
        InputError: the mean loss is not finite, so neither are the logits that were scored.
    """
    loss = figures["mean_loss"]
    if loss is not None and not math.isfinite(loss):
        raise InputError(f"mean_loss on val is {loss}: its logits are not finite; take other weights")
    by_class = {class_key(name): iou for name, iou in zip(class_names, figures["class_iou"], strict=True)}
    return {key: value for key, value in figures.items() if key != "class_iou"} | {"class_iou": by_class}


def class_key(name: str) -> str:
    """The name of a class as a key of class_iou."""
    return name.replace(" ", "_")
