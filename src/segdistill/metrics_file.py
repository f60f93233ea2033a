"""The form of a metrics file: flat snake_case keys, one map of class names for class_iou."""

from __future__ import annotations


def figures_on_disk(figures: dict, class_names: list[str]) -> dict:
    """Figures of an evaluation as a metrics file has them: class_iou by class name, undefined figures None."""
    by_class = {name.replace(" ", "_"): iou for name, iou in zip(class_names, figures["class_iou"], strict=True)}
    return {key: value for key, value in figures.items() if key != "class_iou"} | {"class_iou": by_class}
