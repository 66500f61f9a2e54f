"""`fewsight serve`: a run behind a web page and an HTTP API, with the answers of `fewsight predict`.

It needs the extra `serve`. Without it only this module can be imported; `require_serve` then says what to install.
"""

import importlib.util

from fewsight.errors import FewsightError

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def require_serve() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
        FewsightError: one of them is missing; the message names the extra.
    """
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        raise FewsightError("serve needs an extra: pip install 'fewsight[serve]'")
