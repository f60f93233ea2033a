"""export-onnx@RUN: the finetuned student, holdout images -> student.onnx, student.int8.onnx, metrics of each on val."""

import argparse

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="a name under runs in params.yaml")
    run = parser.parse_args().run
    with stage_process():
        from segdistill.export.run import export_run
        from segdistill.params.read import known_run, load_params
        from segdistill.params.stages import announce_stage

        params = load_params()
        announce_stage(params)
        export_run(params, known_run(params, run))
