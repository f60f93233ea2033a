"""Score a finished model on the unseen drives: groups of frames (data.unseen_groups) that are in no other split.

Val may hold frames of the drives that a model was trained on. Whether a gain holds elsewhere shows here only.
"""

from __future__ import annotations

from segdistill.data.prepared import PreparedData
from segdistill.scoring.evaluate import LabelLoss, Predictor, evaluate
from segdistill.scoring.record import ValRecorder, metrics_on_disk


def score_unseen(
    predictor: Predictor, data: PreparedData, batch_size: int, loss: LabelLoss
) -> tuple[dict, ValRecorder | None]:
    """Return what a metrics file gets, {"unseen": metrics}, and the record of the frames; both empty without any."""
    if data.unseen is None:
        return {}, None
    recorder = ValRecorder(data.table, data.unseen.names, data.frame_groups["unseen"])
    found = evaluate(predictor, data.unseen, len(data.table), batch_size, loss=loss, on_frame=recorder.add)
    return {"unseen": metrics_on_disk(found.metrics, data.table.names)}, recorder
