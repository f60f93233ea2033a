"""benchmark: all students and the teacher -> metrics/benchmark.json, interleaved in one process."""

from segdistill.base.stage_process import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.base.params_file import load_params
        from segdistill.benchmark import benchmark

        benchmark(load_params())
