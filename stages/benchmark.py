"""benchmark: all students and the teacher -> metrics/benchmark.json, interleaved in one process."""

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.latency.run import benchmark
        from segdistill.params.read import load_params
        from segdistill.params.stages import announce_stage

        params = load_params()
        announce_stage(params)
        benchmark(params)
