"""teacher-logits@KIND: the teacher over K crop views of each train frame -> data/teacher_logits/KIND/."""

import argparse
from typing import get_args

from segdistill.base.stage_process import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.base.params import TeacherKind
        from segdistill.base.params_file import load_params
        from segdistill.logits.teacher_cache import FOLDER, geometry
        from segdistill.teacher_logits import build_cache
        from segdistill.training.training_job import Data, compute_of

        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--kind", required=True, choices=get_args(TeacherKind))
        kind = parser.parse_args().kind
        params, data = load_params(), Data()
        crop_px, logits = params.distill.crop_px, params.teacher_logits
        data.check_crop("distill.crop_px", crop_px)
        facts = geometry(data.train, data.fingerprint, params.seed, crop_px, logits.views, logits.stride)
        build_cache(kind, FOLDER / kind, data.train, facts, logits, compute_of(params), len(data.class_names))
