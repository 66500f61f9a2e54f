"""`python -m benchmarks.check faults|many|copies FOLDER`: what `fewsight check` finds, and how long it takes."""

import sys

from benchmarks.check import faults, many, near_duplicates
from benchmarks.machine import choose

if __name__ == "__main__":
    sys.exit(choose({"faults": faults.main, "many": many.main, "copies": near_duplicates.main}, __doc__))
