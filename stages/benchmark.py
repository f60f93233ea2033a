"""benchmark: all students and the teacher -> metrics/benchmark.json, interleaved in one process."""

from segdistill.stage_process import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.benchmark import benchmark
        from segdistill.params_file import load_params

        benchmark(load_params())
