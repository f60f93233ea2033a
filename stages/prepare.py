"""prepare: a Cityscapes tree, its zips, or the built-in city -> data/prepared/."""

from segdistill.dataset import PREPARED
from segdistill.prepare import prepare
from segdistill.stage_process import stage_process

if __name__ == "__main__":
    from segdistill.params_file import load_params  # here, because each worker process imports this file and reads none

    with stage_process():
        params = load_params()
        prepare(params.data, params.seed, PREPARED)
