#!/usr/bin/env bash
# Makes the CPU environment, or writes its lock anew.
#
#   requirements/bootstrap.sh install .venv     # safe to repeat; an interrupted one goes on where it stopped
#   requirements/bootstrap.sh lock .venv        # requirements/cpu.in -> requirements/cpu.txt (UPGRADE=1: newest)
#
# LARGEFORGE_PYTHON        the interpreter to use, instead of looking for python3.11 or python3.12
# LARGEFORGE_TORCH_INDEX   where the CPU build of torch comes from when pip's own sources have none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_index="${LARGEFORGE_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
lock=requirements/cpu.txt
source_only=requirements/source.txt
torch_pin="$(grep -E '^torch==' "$lock")"

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
  local name path version seen=""
  for name in ${LARGEFORGE_PYTHON:-python3.11 python3.12 python3}; do
    for path in $(type -ap "$name" || true); do
      # A version manager's shim exists for every version it knows, so each candidate has to answer.
      version="$("$path" -c 'import sys, ensurepip, venv; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)" \
        || version="does not run, or lacks venv"
      case "$version" in
        3.11.* | 3.12.*) printf '%s\n' "$path"; return ;;
        *) seen+="
  $path: $version" ;;
      esac
    done
  done
  fail "no usable Python 3.11 or 3.12; found:${seen:- none}
Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or name it: LARGEFORGE_PYTHON=/path/to/python3.11 make"
}

# Runs a command with its output in the log: a line every 30 s while it works, the log's end if it fails.
quietly() {
  local started=$SECONDS child
  "$@" >>"$log" 2>&1 &
  child=$!
  trap 'kill "$child" 2>/dev/null || true' EXIT
  while kill -0 "$child" 2>/dev/null; do
    sleep 1
    if (((SECONDS - started) % 30 == 29)); then say "      ... $((SECONDS - started + 1)) s"; fi
  done
  trap - EXIT
  wait "$child"
}

must() {
  quietly "$@" && return
  tail -n 15 "$log" >&2
  fail "this step failed: $*
The whole log is in $log. Check the network and pip's configuration, then run the same command again; it goes on from here."
}

# For quietly alone: exec, so that an interrupt ends pip itself and the next run does not meet it at work.
pip_install() { exec "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --progress-bar off "$@"; }

# Never add the torch index unconditionally: where it cannot be reached, every look-up waits for its time-out.
install_torch() {
  if quietly pip_install --no-deps --only-binary :all: "$torch_pin"; then return; fi
  say "      pip's sources have no $torch_pin; taking it from $torch_index"
  must pip_install --no-deps --only-binary :all: --index-url "$torch_index" "$torch_pin"
}

make_venv() {
  local python
  if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
  python="$(find_python)"
  say "[1/5] Python $("$python" -c 'import platform; print(platform.python_version())') -> $venv"
  "$python" -m venv --clear "$venv" || fail "$python could not create $venv; remove that folder and run again"
}

# pip writes RECORD last. Without it a package was cut off half-way and pip would take it for complete.
forget_half_installed() {
  local info
  for info in "$venv"/lib/python3.*/site-packages/*.dist-info; do
    if [ -d "$info" ] && [ ! -s "$info/RECORD" ]; then rm -rf "$info"; fi
  done
}

install() {
  [ "$(uname -s)" = Linux ] || fail "the CPU engine runs on Linux and this is $(uname -s); use a Linux machine or container"
  make_venv
  log="$venv/install.log"
  : >"$log"
  forget_half_installed
  say "[2/5] $torch_pin"
  install_torch
  say "[3/5] $(grep -c '==' "$lock") pinned packages from $lock (some two minutes, 4 GB)"
  must pip_install --no-deps --only-binary :all: -r "$lock"
  say "[4/5] $(grep -c '==' "$source_only") packages from source"
  # Its compiled parts are for GPUs and are compiled there when first used.
  DS_BUILD_OPS=0 must pip_install --no-deps -r "$source_only"
  say "[5/5] largeforge-ray, editable"
  must pip_install --no-deps --no-build-isolation -e .
  touch "$venv/.installed"
}

# pip's own sources, because uv does not read pip's configuration.
pip_setting() {
  local name="PIP_${1^^}"
  name="${name//-/_}"
  printf '%s' "${!name:-$("$venv/bin/python" -m pip config get "global.$1" 2>/dev/null || true)}"
}

write_lock() {
  local uv="$venv/lock/bin/uv" fresh="$venv/lock/cpu.txt"
  log="$venv/lock.log"
  : >"$log"
  if [ ! -x "$uv" ]; then
    "$venv/bin/python" -m venv --clear "$venv/lock"
    must "$venv/lock/bin/python" -m pip --disable-pip-version-check install --quiet uv
  fi
  cp "$lock" "$fresh"
  local options=(--override requirements/overrides.txt --python-version 3.11 --python-platform x86_64-manylinux_2_31
    --no-annotate --no-header --only-binary :all: --quiet --output-file "$fresh")
  [ -z "${UPGRADE:-}" ] || options+=(--upgrade)
  if "$venv/bin/python" -m pip --disable-pip-version-check download --quiet --no-deps --dest "$venv/lock/torch" "$torch_pin" \
    >>"$log" 2>&1; then
    options+=(--find-links "$venv/lock/torch")
  else
    options+=(--torch-backend cpu)
  fi
  UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$(pip_setting index-url)}" \
    must "$uv" pip compile requirements/cpu.in "${options[@]}"
  { grep '^#' "$lock"; grep -v '^#' "$fresh"; } >"$lock.new"
  mv "$lock.new" "$lock"
  say "wrote $lock: $(grep -c '==' "$lock") packages; run make test before committing it"
}

venv="${2:-.venv}"
case "${1:-}" in
  install) install ;;
  lock) write_lock ;;
  *) fail "unknown command '${1:-}'; use: requirements/bootstrap.sh install|lock [FOLDER]" ;;
esac
