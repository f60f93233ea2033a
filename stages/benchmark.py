"""benchmark: all students and the teacher -> metrics/benchmark.json, interleaved in one process."""

from segdistill.benchmark import benchmark
from segdistill.errors import told_plainly
from segdistill.params_file import load_params

if __name__ == "__main__":
    with told_plainly():
        benchmark(load_params())
