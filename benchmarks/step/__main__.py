"""`python -m benchmarks.step speed|memory ...`: a training step, ours against timm's; --help lists the options."""

import sys

from benchmarks.machine import choose
from benchmarks.step import memory, speed

if __name__ == "__main__":
    sys.exit(choose({"speed": speed.main, "memory": memory.main}, __doc__))
