"""Memory that is freed stays with the process, for the next tensor of its size.

The C library gives large blocks back to the system as soon as they are freed, and the system hands them out again page
by page, each filled with zeros first. A net frees and asks for the same blocks in every pass: on a CPU that is up to a
third of a forward pass over a large frame.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt (malloc.h of the GNU C library).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """From here on, keep what is freed; False where the C library is another than GNU's.

    What is computed stays the same to the bit. The process does not grow beyond the most that it once held, but for
    gaps between blocks: 4 to 12% in trainings and evaluations.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has none
        return False
    # No block in a mapping of its own, which goes back to the system when it is freed; and none off the heap's end.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
