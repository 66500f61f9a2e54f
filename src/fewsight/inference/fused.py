"""Score images with all runs of an ensemble batch by batch, and fuse the scores of each batch: nothing is stored."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewsight.inference.opening import RunsAndViews
from fewsight.inference.score_run import num_threads
from fewsight.machine.device import compute_threads
from fewsight.scores.log_probs import first_errors
from fewsight.scores.scoring import Scorer, SharedLoads, Source, score_images


@dataclass(frozen=True)
class FusedScores:
    """Scores of a batch of images, in the order given."""

    log_probs: np.ndarray  # float32 [n, K], the log of the weighted mean over views and runs; NaN with an error
    errors: list[str | None]  # [n], as in `Scores`; the first of the runs'
    features: np.ndarray | None  # float32 [n, D] of a run, if requested


def fused_batches(
    opened: RunsAndViews, scorers: Mapping[str, Scorer], sources: Sequence[Source], *, features: bool = False
) -> Iterator[FusedScores]:
    """Score images with a run, or with each run of an ensemble in turns; each image is decoded once.

    Args:
        opened: the runs and their views.
        scorers: by the runs' names.
        sources: as for `score_images`.
        features: of a run, also return the pooled features.
    """
    loads = SharedLoads()
    with compute_threads(num_threads(scorers[next(iter(opened.runs))].recipe)), contextlib.ExitStack() as stack:
        scorings = [
            score_images(scorers[name], sources, views=opened.views[name], features=features, loads=loads)
            for name in opened.runs
        ]
        for scoring in scorings:
            stack.callback(scoring.close)
        for by_run in zip(*scorings, strict=True):
            results = {name: scores.results for name, scores in zip(opened.runs, by_run, strict=True)}
            errors = first_errors([scores.errors for scores in by_run])
            yield FusedScores(opened.fused(results), errors, by_run[0].features)
