"""Make a Slurm job of each run: python docs/cluster/submit.py vanilla a03-lr01. Without Slurm they run on this machine.

Call it in a folder that all nodes have, after `dvc push`; `dvc repro --pull` then brings the results in.
"""

import subprocess
import sys

import submitit

WORK = """
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
git clone --quiet . "$clone"
cp params.yaml dvc.lock "$clone"
export SEGDISTILL_SCRATCH="$PWD/scratch" PYTHONPATH="$clone/src"
cd "$clone"
segdistill work "$0"
"""


class Work(submitit.helpers.Checkpointable):
    """A run that Slurm starts again after a preemption; its training continues from its checkpoint."""

    def __call__(self, run: str) -> None:
        subprocess.run(["sh", "-ec", WORK, run], check=True)


executor = submitit.AutoExecutor(folder="scratch/slurm/%j")
executor.update_parameters(timeout_min=720, cpus_per_task=8, slurm_gpus_per_node=1)
jobs = [executor.submit(Work(), run) for run in sys.argv[1:]]
for job in jobs:
    job.result()
