"""Accuracy of `fewsight train` and of its peers at equal cost, on several sets: `python -m benchmarks.accuracy`."""
