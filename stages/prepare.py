"""prepare: a Cityscapes tree, its zips, or the built-in city -> data/prepared/."""

from segdistill.stage_process import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.dataset import PREPARED
        from segdistill.params_file import load_params
        from segdistill.prepare import prepare

        params = load_params()
        prepare(params.data, params.seed, PREPARED)
