"""export-onnx@RUN: the finetuned student, holdout images -> student.onnx, student.int8.onnx, metrics of each on val.

export-onnx-repeat@RUN-SEED: the same with another seed, by `--run RUN-SEED`.
"""

import argparse

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="a name under runs in params.yaml, or RUN-SEED with one of seeds")
    run = parser.parse_args().run
    with stage_process():
        from segdistill.export.run import export_run
        from segdistill.params.read import known_run, load_params
        from segdistill.params.stages import announce_stage, copied_from_run

        params = load_params()
        if not copied_from_run(params, "export-onnx", run):
            announce_stage(params)
            export_run(params, known_run(params, run))
