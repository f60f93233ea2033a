"""teacher-check: prepared data, a checkpoint or none -> models/teacher/, metrics/teacher.json; stops a weak teacher."""

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.params.read import load_params
        from segdistill.teacher.check import check_teacher

        check_teacher(load_params())
