"""The report, run by one command: eight trainings, seven models, 28 rows, their tables and the fusion."""

from fewsight.apps.reproduce.drive import reproduce

__all__ = ["reproduce"]
