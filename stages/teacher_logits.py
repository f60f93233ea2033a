"""teacher-logits@KIND: the teacher over K crop views of each train frame -> data/teacher_logits/KIND/."""

import argparse

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", required=True, choices=("views", "frame", "online"))
    kind = parser.parse_args().kind
    with stage_process():
        from segdistill.parallel.launch import on_devices
        from segdistill.params.read import load_params
        from segdistill.params.stages import announce_stage
        from segdistill.teacher_logits.build import teacher_logits

        params = load_params()
        with on_devices(params.compute):
            announce_stage(params)
            teacher_logits(params, kind)
