#!/usr/bin/env bash
# What ray_cluster.yaml runs on every host of a cluster, in ~/migvis, where `ray up` has copied the checkout.
#
#   cluster_host.sh install storage=FOLDER tracking=URI    installs the project, and sets the environment of every shell
#   cluster_host.sh start-tracking                         the tracking server, if its URI is on this host itself
#   cluster_host.sh try ray start …                        until Ray has started, five times at most
#   cluster_host.sh stop                                   Ray and the tracking server
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
environment="$HOME/.config/migvis/environment"
state="$HOME/.local/state/migvis"

install() {
    local storage="" tracking=""
    for word in "$@"; do
        case "$word" in
        storage=/*) storage="${word#storage=}" ;;
        tracking=?*) tracking="${word#tracking=}" ;;
        *) fail "$word: expected storage=/FOLDER and tracking=URI" ;;
        esac
    done
    [[ -n "$storage" && -n "$tracking" ]] || fail "expected storage=/FOLDER and tracking=URI"
    mkdir -p "$storage" && [[ -w "$storage" ]] || fail "$storage: the storage folder cannot be written by $(id -un)"
    [[ ! -e ~/.ray/auth_token ]] || chmod 600 ~/.ray/auth_token
    write_environment "$storage" "$tracking"
    install_project
}

write_environment() {
    mkdir -p "$(dirname "$environment")"
    cat >"$environment" <<END
# Written by scripts/cluster_host.sh: \`ray up\` writes it anew. Every bash of this user reads it, Ray's above all.
case ":\$PATH:" in *":$project/.venv/bin:"*) ;; *) export PATH="$project/.venv/bin:\$HOME/.local/bin:\$PATH" ;; esac
export MIGVIS_STORAGE='$1'           # where studies and stages are kept: tune/run.py --storage
export MLFLOW_TRACKING_URI='$2'      # where trials are shown: tune/run.py --tracking-uri
export RAY_ADDRESS=auto              # on the head, tune/run.py joins the cluster by itself
export RAY_AUTH_MODE=token           # nobody without ~/.ray/auth_token is let in
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_USAGE_STATS_ENABLED=0
END
    # First, because many a .bashrc ends at once in a shell that nobody types into.
    local line="[ ! -r '$environment' ] || . '$environment'"
    touch ~/.bashrc
    if ! grep -qxF "$line" ~/.bashrc; then
        printf '%s\n%s\n' "$line" "$(cat ~/.bashrc)" >~/.bashrc.migvis
        mv ~/.bashrc.migvis ~/.bashrc
    fi
    [[ -e ~/.bash_profile || -e ~/.bash_login || -e ~/.profile ]] || echo '. ~/.bashrc' >~/.bash_profile
}

install_project() {
    export PATH="$HOME/.local/bin:$PATH"
    # A user's own uv breaks nothing of the system's, which pip does not believe on its own.
    command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv ||
        fail "uv is not installed, and pip could not install it"
    (cd "$project" && uv sync --no-dev --quiet)
}

start_tracking() {
    . "$environment"
    local place="${MLFLOW_TRACKING_URI#http://}"
    [[ "$MLFLOW_TRACKING_URI" == http://127.0.0.1:* || "$MLFLOW_TRACKING_URI" == http://localhost:* ]] || return 0
    mkdir -p "$state"
    if tracking_runs; then return 0; fi
    # Made here rather than by the server: in one step and in seconds.
    python - "$MIGVIS_STORAGE" <<'END'
import sys
from pathlib import Path
from tune.tracking_writer import create_database
storage = Path(sys.argv[1])
create_database(storage / "mlflow.db", storage / "mlflow-artifacts")
END
    # A session of its own, whose number is its first process': so it outlives this shell, and can be ended whole.
    setsid nohup bash "$project/mlflow/serve.sh" "$MIGVIS_STORAGE" "${place##*:}" </dev/null >"$state/tracking.log" 2>&1 &
    local first=$!
    echo "$first" >"$state/tracking.pid"
    for _ in $(seq 240); do
        # Whether it lives, rather than its session, which it may not have made yet.
        if ! kill -0 "$first" 2>/dev/null; then break; fi
        if python -c "import urllib.request as r; r.urlopen('$MLFLOW_TRACKING_URI/health', timeout=5)" 2>/dev/null; then return 0; fi
        sleep 0.5
    done
    tail -n 20 "$state/tracking.log" >&2
    fail "the tracking server did not start"
}

# A host under load may not have Ray up in the seconds that Ray gives itself, and the head never comes back to one that failed.
try() {
    ulimit -n "$(ulimit -Hn)"  # Ray wants many files
    export RAY_USAGE_STATS_ENABLED=0  # `ray up` sets it to 1 before this
    for _ in 1 2 3 4 5; do
        if "$@"; then return 0; fi
        ray stop --force
        sleep 5
    done
    fail "$*: failed five times"
}

tracking_runs() {
    [[ -r "$state/tracking.pid" ]] && pgrep --session "$(cat "$state/tracking.pid")" --full 'serve.sh|mlflow' >/dev/null
}

stop() {
    [[ ! -r "$environment" ]] || . "$environment"
    ! command -v ray >/dev/null || ray stop --force
    if tracking_runs; then
        pkill -TERM --session "$(cat "$state/tracking.pid")" || true
        for _ in $(seq 50); do tracking_runs || break; sleep 0.2; done
        pkill -KILL --session "$(cat "$state/tracking.pid")" || true
    fi
    rm -f "$state/tracking.pid"
}

fail() {
    echo "error: $(hostname): $*" >&2
    exit 1
}

case "${1:-}" in
install) install "${@:2}" ;;
start-tracking) start_tracking ;;
try) try "${@:2}" ;;
stop) stop ;;
*) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
