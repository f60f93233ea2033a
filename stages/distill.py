"""distill@RUN: prepared data, teacher logits -> models/runs/RUN/distilled.safetensors and its metrics.

distill-repeat@RUN-SEED: the same with another seed, by `--run RUN-SEED`.
"""

import argparse

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="a name under runs in params.yaml, or RUN-SEED with one of seeds")
    run = parser.parse_args().run
    with stage_process():
        from segdistill.parallel.launch import on_devices
        from segdistill.params.read import known_run, load_params
        from segdistill.params.stages import announce_stage, copied_from_run
        from segdistill.student.run import distill

        params = load_params()
        if not copied_from_run(params, "distill", run):
            with on_devices(params.compute):
                announce_stage(params)
                distill(params, known_run(params, run))
