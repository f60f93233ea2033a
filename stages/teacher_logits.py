"""teacher-logits@KIND: the teacher over K crop views of each train frame -> data/teacher_logits/KIND/."""

import argparse

from segdistill.dataset import PREPARED, open_split, read_index
from segdistill.params_file import load_params
from segdistill.stage_process import stage_process
from segdistill.teacher_cache import FOLDER, geometry
from segdistill.teacher_logits import build_cache
from segdistill.training_job import compute_of

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", required=True)
    kind = parser.parse_args().kind
    with stage_process():
        params = load_params()
        train, fingerprint = open_split("train"), read_index(PREPARED)["fingerprint"]
        logits = params.teacher_logits
        facts = geometry(train, fingerprint, params.seed, params.distill.crop_px, logits.views, logits.stride)
        build_cache(kind, FOLDER / kind, train, facts, logits, compute_of(params))
