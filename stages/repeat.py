"""repeat@RUN-SEED: a run once more with another seed -> the files of a run, in models/ and metrics/runs/RUN-SEED/."""

import argparse

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="a name under runs in params.yaml")
    parser.add_argument("--seed", required=True, type=int, help="one of seeds in params.yaml")
    given = parser.parse_args()
    with stage_process():
        from segdistill.core.files import write_json
        from segdistill.parallel.launch import on_devices
        from segdistill.params.read import known_run, load_params
        from segdistill.params.stages import announce_stage
        from segdistill.paths import SAME_AS, run_metrics, run_models

        params, name = load_params(), f"{given.run}-{given.seed}"
        if given.seed == params.seed_of(known_run(params, given.run)):
            announce_stage(params)
            # The run itself has this seed. DVC wants the outputs nevertheless; nobody reads them.
            for folder in (run_models(name), run_metrics(name)):
                write_json(folder / SAME_AS, {"run": given.run})
        else:
            known_run(params, name)
            with on_devices(params.compute):
                from segdistill.export.run import export_run
                from segdistill.student.run import distill, finetune

                announce_stage(params)
                # DVC removes the distilled weights when a stopped stage starts again. The checkpoints, kept at their
                # last steps until all is done, bring them back without training.
                trained = [phase(params, name, keep_checkpoint=True) for phase in (distill, finetune)]
            export_run(params, name)
            for checkpointer in filter(None, trained):
                checkpointer.clear()
