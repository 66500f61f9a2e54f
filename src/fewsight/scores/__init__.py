"""Scores: made once per image and view, kept in a store, and queried without the model. Imports no torch."""
