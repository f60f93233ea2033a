"""teacher-check: prepared data, a checkpoint or none -> models/teacher/, metrics/teacher.json; stops a weak teacher."""

from segdistill.base.stage_process import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.base.params_file import load_params
        from segdistill.teacher import check_teacher

        check_teacher(load_params())
