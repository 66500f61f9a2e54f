"""Trained runs on images: scoring, ensembles, evaluation, prediction."""
