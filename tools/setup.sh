#!/bin/sh
# Make .venv at the root and install fewsight with everything that its tests need. Called by make.
set -eu
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "fewsight needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1 || echo missing)." >&2
    echo "Install it, or name another: make PYTHON=/path/to/python3.12 ..." >&2
    exit 2
fi

# Debian ships venv apart from Python: on a machine of our own we may install it, elsewhere we say how.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null && [ ! -x .venv/bin/python ]; then
    package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package"
    else
        echo "Python's venv module is missing. Install it with: sudo apt install $package" >&2
        exit 2
    fi
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
