"""prepare: a Cityscapes tree, its zips, or the built-in city -> data/prepared/."""

from segdistill.base.stage_process import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.base.params_file import load_params
        from segdistill.frames.dataset import PREPARED
        from segdistill.prepare import prepare

        params = load_params()
        prepare(params.data, params.seed, PREPARED)
