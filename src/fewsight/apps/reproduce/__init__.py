"""Reproduction of the paper by one command: eight trainings, seven models, 28 table rows, the fusion, the ablation."""

from fewsight.apps.reproduce.drive import Settings, reproduce

__all__ = ["Settings", "reproduce"]
