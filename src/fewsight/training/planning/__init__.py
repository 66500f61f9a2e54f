"""The plan of `--recipe auto`: data + device + hours -> a recipe, with reasons.

The planner tries candidates (backbone, stem, width, image size) in order of cost, times real training steps of each,
and chooses the largest that still sees every image often enough in the time. The number of epochs then fills the time.
Nothing reads the clock after that, so the recipe.toml of a planned run repeats the run.
"""
