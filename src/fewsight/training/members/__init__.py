"""Members: trainings of one recipe with different seeds, side by side, that leave one folder, an ensemble.

The folder is a run folder whose weights are those of the runs in it. While it is trained, every command reads it as an
unfinished run; when all members are finished, ensemble.json makes it an ensemble.
"""
