#!/usr/bin/env bash
# Serves a laptop's studies: bash mlflow/serve.sh [STORAGE [PORT]]
# STORAGE defaults to the storage of tune/run.py, PORT to 5000. Only this machine can reach it.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
storage="${1:-${XDG_DATA_HOME:-$HOME/.local/share}/migvis}"
port="${2:-5000}"
if [[ ! -f "$storage/mlflow.db" ]]; then
    echo "error: $storage: no mlflow.db; run a study first, or give its --storage" >&2
    exit 2
fi
storage="$(cd "$storage" && pwd)"

mlflow="$root/.venv/bin/mlflow"
[[ -x "$mlflow" ]] || mlflow=mlflow
# One worker and no job execution: otherwise MLflow starts at least seven helper processes of about 230 MB.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
exec "$mlflow" server --backend-store-uri "sqlite:///$storage/mlflow.db" \
    --artifacts-destination "$storage/mlflow-artifacts" --host 127.0.0.1 --port "$port" --workers 1
