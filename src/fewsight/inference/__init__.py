"""Trained runs applied to images: scoring, ensembles, evaluation, prediction."""
