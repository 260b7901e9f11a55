#!/usr/bin/env bash
# Prepares a Python environment with everything that ptuning needs. The other scripts source this file; run by itself,
# it does nothing else.
#   No active environment: creates .venv in the checkout with everything in requirements.txt, and updates it only when that
#   file or pyproject.toml has changed.
#   An active virtual or conda environment: uses it, and installs what is missing there.
# A script that sources it may set ptuning_needs=tests to have the test tools installed in an active environment as well.
# Sets two variables: ptuning_root (the checkout) and ptuning_python (its Python).
# It does not change the current directory, so that the user's relative paths stay valid.
set -euo pipefail

ptuning_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ptuning_python=

say() { printf '[setup] %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

python_in() {  # the Python of an environment's folder, or nothing
    local candidate
    for candidate in "$1/bin/python" "$1/Scripts/python.exe" "$1/python.exe"; do
        if [ -x "$candidate" ]; then printf '%s' "$candidate"; return; fi
    done
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

active_python() {  # the Python of the active environment, or nothing
    if [ -n "${VIRTUAL_ENV-}" ]; then
        python_in "$VIRTUAL_ENV"
    elif [ -n "${CONDA_PREFIX-}" ] && [ "${CONDA_DEFAULT_ENV-}" != base ]; then
        python_in "$CONDA_PREFIX"
    fi
}

system_python() {  # a Python that can make environments
    local name
    for name in python3.13 python3.12 python3.11 python3 python; do
        if command -v "$name" >/dev/null 2>&1 && new_enough "$name" \
            && "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            printf '%s' "$name"
            return
        fi
    done
}

pip_install() { "$ptuning_python" -m pip install --disable-pip-version-check "$@" >&2; }

fingerprint() { printf '%s ' "$ptuning_root"; cat "$ptuning_root/requirements.txt" "$ptuning_root/pyproject.toml" | cksum; }

use_own_environment() {
    local folder="$ptuning_root/.venv" stamp="$ptuning_root/.venv/ptuning-setup" maker
    ptuning_python=$(python_in "$folder")
    if [ -n "$ptuning_python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then return; fi
    if [ -z "$ptuning_python" ] || ! new_enough "$ptuning_python"; then
        maker=$(system_python)
        [ -n "$maker" ] || fail "no Python 3.11 or newer with venv found; install one (Debian, Ubuntu: apt install" \
            "python3.11 python3.11-venv; macOS: brew install python@3.12), or activate an environment that has it"
        say "no environment is active: creating $folder with $("$maker" --version)"
        "$maker" -m venv --clear "$folder"
        ptuning_python=$(python_in "$folder")
    fi
    say "installing requirements.txt into $folder (a few minutes the first time; later runs start at once)"
    pip_install -r "$ptuning_root/requirements.txt"
    say "installing ptuning itself from $ptuning_root"
    pip_install --quiet -e "$ptuning_root" --no-deps
    fingerprint > "$stamp"
    say "done"
}

use_active_environment() {
    local missing packages
    new_enough "$ptuning_python" || fail "the active environment has $("$ptuning_python" --version 2>&1); ptuning needs" \
        "Python 3.11 or newer: deactivate it (the script then makes its own), or activate another one"
    missing=$("$ptuning_python" -P "$ptuning_root/scripts/missing_requirements.py" "${ptuning_needs-}")
    [ -n "$missing" ] || return 0
    "$ptuning_python" -m pip --version >/dev/null 2>&1 || "$ptuning_python" -m ensurepip >&2
    packages=$(printf '%s\n' "$missing" | grep -v '^ptuning$' || true)
    if [ -n "$packages" ]; then
        # shellcheck disable=SC2086  # one requirement a word
        say "the active environment ($ptuning_python) lacks some packages; installing" $packages
        # shellcheck disable=SC2086
        pip_install $packages
    fi
    if [ "$packages" != "$missing" ]; then
        say "installing ptuning itself from $ptuning_root into the active environment ($ptuning_python)"
        pip_install --quiet -e "$ptuning_root" --no-deps
    fi
}

ptuning_python=$(active_python)
if [ -z "$ptuning_python" ] || [ "${VIRTUAL_ENV-}" = "$ptuning_root/.venv" ]; then
    use_own_environment
else
    use_active_environment
fi
