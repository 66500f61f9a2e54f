"""A run or an ensemble as one ONNX file, which gives the probabilities of `predict` without fewsight."""

import importlib.util

from fewsight.errors import FewsightError


def require_export() -> None:
    """Say how to install the extra where a part of it is missing.

    Raises:
        FewsightError: it is.
    """
    needed = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise FewsightError(f"export needs an extra ({', '.join(missing)}): pip install 'fewsight[export]'")
