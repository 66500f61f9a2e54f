"""fewsight: train strong image classifiers from scratch on few labelled images."""

__version__ = "0.1.0"
