# Sourced by the scripts: makes .venv/ in the checkout with zkc and its tools, once for each pyproject.toml.
# Needs python 3.11 or newer with venv, and a package registry. Says what it does on stderr, and only when it takes long.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P) || exit 1
venv=$top/.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# What is compiled once is kept: hundreds of processes of the tests start without the compiler.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE
# Where that environment is active, it is still made by a python outside of it.
while [[ :$PATH: == *:"$venv"/bin:* ]]; do
  PATH=:$PATH: && PATH=${PATH/:"$venv"\/bin:/:} && PATH=${PATH#:} && PATH=${PATH%:}
done

say() { printf '%s\n' "$*" >&2; }

# Prints the path of the first python that is new enough; $PYTHON goes first.
find_python() {
  local name
  for name in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
    "$name" -c 'import sys, venv, ensurepip; sys.version_info >= (3, 11) or sys.exit(1); print(sys.executable)' \
      2>/dev/null </dev/null && return
  done
  say "zkc needs Python 3.11 or newer with its venv module, and found none on PATH."
  say "Install one (Debian: apt-get install python3 python3-venv), or name it: PYTHON=/path/to/python3.12 $0"
  return 1
}

# make_venv FOLDER: a virtual environment without a word.
make_venv() { rm -rf "$1" && "$python" -m venv "$1" </dev/null; }

# pip_quietly FOLDER ARGUMENT...: pip of that environment; its output is shown only if it fails. As root, too, pip may
# write here: it is an environment of its own.
pip_quietly() {
  local folder=$1 log code
  shift
  log=$("$folder/bin/python" -m pip --quiet "$@" 2>&1 </dev/null)
  code=$?
  [ "$code" = 0 ] || { say "$log"; say "pip could not do: pip $*"; }
  return "$code"
}

set_up() {
  python=$(find_python) || exit 1
  local stamp
  # An environment does not survive that it is moved or that its python is exchanged.
  stamp=$("$python" - "$top" <<'PY'
import hashlib, pathlib, sys
project = pathlib.Path(sys.argv[1], "pyproject.toml").read_bytes()
print(sys.argv[1], sys.executable, sys.version.split()[0], hashlib.sha256(project).hexdigest())
PY
  ) || exit 1
  if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
    say "Installing zkc and its tools into .venv/ (once; half a minute or so) ..."
    make_venv "$venv" || { say "$python could not make a virtual environment in $venv"; exit 1; }
    pip_quietly "$venv" install --editable "$top[dev]" || exit 1
    printf '%s\n' "$stamp" >"$venv/stamp"
  fi
  PATH=$venv/bin:$PATH
  # As pip does with what it installs.
  (cd "$top" && python -m compileall -q zkc tests) </dev/null
}

# temporary_folder: sets $temporary, a folder that goes when the script ends. Short: sockets live below it.
temporary_folder() {
  temporary=$(mktemp -d "${TMPDIR:-/tmp}/zkc.XXXXXX") || exit 1
  trap 'rm -rf "$temporary"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# run_pytest ARGUMENT...: from the checkout, with every temporary file in a folder that goes with the script.
run_pytest() {
  temporary_folder
  cd "$top" || exit 1
  TMPDIR=$temporary python -m pytest --basetemp="$temporary/t" "$@" </dev/null
}
