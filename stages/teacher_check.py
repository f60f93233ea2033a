"""teacher-check: prepared data, a checkpoint or none -> models/teacher/, metrics/teacher.json; stops a weak teacher."""

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.parallel.launch import on_devices
        from segdistill.params.engines import check_engines
        from segdistill.params.read import load_params
        from segdistill.params.stages import announce_stage
        from segdistill.teacher.check import check_teacher

        params = load_params()
        check_engines(params)
        with on_devices(params.compute):
            announce_stage(params)
            check_teacher(params)
