"""Runnable comparisons; each prints and keeps its machine, versions, medians and spread."""
