"""`fewsight export`: a run or an ensemble as one ONNX file, with the probabilities of `predict`, without fewsight.

It needs the extra `export`; `require_export` says what to install where it is missing.
"""

import importlib.util

from fewsight.errors import FewsightError


def require_export() -> None:
    """Check that the packages of the extra `export` are installed.

    Raises:
        FewsightError: one of them is missing; the message names it and the extra.
    """
    packages = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise FewsightError(f"export needs an extra ({', '.join(missing)}): pip install 'fewsight[export]'")
