"""Scores: computed once per image and view, stored, then queried without a model. Importing it imports no torch."""
