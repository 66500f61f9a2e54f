"""The plan of `--recipe auto`: data + device + hours -> a recipe, with reasons.

The planner goes through levels (nets, image sizes, how many are averaged) in order of cost, times real training steps
of their nets, and chooses the last at which each net still sees the images often enough in the time. It times the
chosen nets once more, side by side as they will train; the numbers of epochs then fill the time. Nothing reads the
clock after that, so the recipe.toml of a planned run repeats the run.
"""
