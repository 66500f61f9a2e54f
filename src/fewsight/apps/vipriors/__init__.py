"""The VIPriors image classification challenge.

Source: the layout and the evaluator of github.com/VIPriors/vipriors-challenges-toolkit, image-classification.
"""
