"""teacher-check: prepared data, a checkpoint or none -> models/teacher/, metrics/teacher.json; stops a weak teacher."""

from segdistill.errors import told_plainly
from segdistill.params_file import load_params
from segdistill.teacher import check_teacher

if __name__ == "__main__":
    with told_plainly():
        check_teacher(load_params())
