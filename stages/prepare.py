"""prepare: a Cityscapes tree, its zips, or the built-in city -> data/prepared/."""

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.params.engines import check_engines
        from segdistill.params.read import load_params
        from segdistill.params.stages import announce_stage
        from segdistill.paths import PREPARED
        from segdistill.prepare.run import prepare

        params = load_params()
        announce_stage(params)
        check_engines(params)
        prepare(params.data, params.seed, PREPARED)
