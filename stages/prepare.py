"""prepare: a Cityscapes tree, its zips, or the built-in city -> data/prepared/."""

from segdistill.dataset import PREPARED
from segdistill.errors import told_plainly
from segdistill.prepare import prepare

if __name__ == "__main__":
    from segdistill.params_file import load_params  # here, because each worker process imports this file and reads none

    with told_plainly():
        params = load_params()
        prepare(params.data, params.seed, PREPARED)
