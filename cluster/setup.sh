#!/usr/bin/env bash
# Makes .venv with everything in it, pinned by constraints.txt. Does nothing when that is done already.
set -euo pipefail
cd "$(dirname "$0")/.."
extra="${EXTRA:-cpu}"
fail() { printf 'setup: %s\n' "$*" >&2; exit 2; }

case "$extra" in cpu | gpu) ;; *) fail "EXTRA=$extra is unknown; take EXTRA=cpu or EXTRA=gpu." ;; esac

stamp=".venv/.pairless-$extra-$(cat pyproject.toml constraints.txt overrides.txt | sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0

python="${PAIRLESS_PYTHON:-python3.11}"
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
  fail "Python 3.11 is needed. On Debian 12: apt-get install python3.11 python3.11-venv python3.11-dev. Elsewhere set PAIRLESS_PYTHON to one."
command -v g++ >/dev/null ||
  fail "DeepSpeed builds a small C++ operator at its first use and needs a compiler: apt-get install g++."
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
  fail "DeepSpeed's operator needs Python's headers: apt-get install python3.11-dev."

[ -x .venv/bin/python ] || "$python" -m venv .venv ||
  fail "no virtual environment could be made: apt-get install python3.11-venv."
echo "setup: installing into .venv (6.7 GB; one to five minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
.venv/bin/uv pip install --quiet --python .venv/bin/python \
  --constraint constraints.txt --override overrides.txt --editable ".[$extra,dev]"
# Compiled once here, or every process of Ray compiles its imports anew where PYTHONDONTWRITEBYTECODE is set:
# vLLM then takes twice as long to start. Templates in some packages are no valid Python; that is no failure.
.venv/bin/python -m compileall -q -j 2 .venv/lib >/dev/null 2>&1 || true
rm -f .venv/.pairless-*
touch "$stamp"
