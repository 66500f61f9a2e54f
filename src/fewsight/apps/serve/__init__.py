"""`fewsight serve`: a run behind a web page and an HTTP API, with the answers of `fewsight predict`.

It needs the extra `serve`: `require_serve` says so, and is all that can be imported without it.
"""

import importlib.util

from fewsight.errors import FewsightError

PACKAGES = ("fastapi", "uvicorn", "python_multipart")


def require_serve() -> None:
    """Say how to install the extra where it is missing.

    Raises:
        FewsightError: it is.
    """
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        raise FewsightError("serve needs an extra: pip install 'fewsight[serve]'")
