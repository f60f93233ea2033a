"""Print the seconds of the first step of a compiled student. `ways` runs this twice, in processes of their own.

torch keeps what it compiled in the folder TORCHINDUCTOR_CACHE_DIR and in the memory of the process.
"""

from __future__ import annotations

import time

from benchmarks.our_loop import OurLoop, next_steps, our_compute, student_settings, through_compiler
from benchmarks.streets import ON_CPU, streets_on_disk

if __name__ == "__main__":
    compute = our_compute()
    ours = OurLoop(streets_on_disk(ON_CPU.frame_px, ON_CPU.frames), ON_CPU, compute, student_settings())
    first_step = next_steps(through_compiler(ours.job("compiled")), 1)
    started = time.perf_counter()
    first_step()
    print(time.perf_counter() - started)
