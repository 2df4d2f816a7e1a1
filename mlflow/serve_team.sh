#!/usr/bin/env bash
# Serves a team's studies: bash mlflow/serve_team.sh. Everything is read from the environment, so that no password is on a
# command line; see README.md beside this file. `bash mlflow/serve_team.sh upgrade` brings the database to this MLflow's schema.
#
#   TRACKING_URL    how the team reaches the server, such as https://mlflow.lab.org; several separated by commas
#   BUCKET          where artifacts go, such as s3://migvis or s3://lab/migvis
#   PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD        the PostgreSQL database
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY              of the bucket; MLFLOW_S3_ENDPOINT_URL where it is not Amazon's
#   MLFLOW_AUTH_ADMIN_PASSWORD                            of the user `admin`, read when the database is new
#   LISTEN (127.0.0.1), PORT (5000), WORKERS (2)
set -euo pipefail

folder="$(cd "$(dirname "$0")" && pwd)"
: "${LISTEN:=127.0.0.1}" "${PORT:=5000}" "${WORKERS:=2}" "${PGPORT:=5432}"
export PGPORT MLFLOW_DISABLE_TELEMETRY=true MLFLOW_AUTH_CONFIG_PATH="$folder/basic_auth.ini"
# Otherwise MLflow starts at least seven helper processes of about 230 MB.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
# Names the user and the password of the database nowhere: libpq reads PGHOST and the others itself.
database="postgresql+psycopg://"

fail() { echo "error: $1" >&2; exit 2; }
need() { for name in "$@"; do [[ -n "${!name:-}" ]] || fail "$name is not set; the first lines of $0 say what it is"; done; }

need PGHOST PGDATABASE PGUSER PGPASSWORD
python="$folder/../.venv/bin/python"
[[ -x "$python" ]] || python=python3
"$python" -c 'import importlib.metadata as m; [m.version(n) for n in ("mlflow", "flask-wtf", "boto3", "psycopg")]' \
    2>/dev/null || fail "$python lacks a part of MLflow's server: pip install -r $folder/requirements.txt"

if [[ "${1:-}" == upgrade ]]; then
    "$python" -m mlflow db upgrade "$database"
    exec "$python" -m mlflow.server.auth db upgrade --url "$database"
fi
[[ $# == 0 ]] || fail "$1: expected nothing, or upgrade"

need TRACKING_URL BUCKET AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_AUTH_ADMIN_PASSWORD
[[ "$BUCKET" =~ ^s3://[^/]+ ]] || fail "BUCKET: expected s3://NAME or s3://NAME/FOLDER, got $BUCKET"
# A page of another site, or of a host name that was pointed at this server, is answered by 403.
hosts="localhost:$PORT,127.0.0.1:$PORT"
for url in ${TRACKING_URL//,/ }; do
    [[ "$url" =~ ^https?://([^/@*]+)$ ]] || fail "TRACKING_URL: expected http(s)://HOST or http(s)://HOST:PORT, got $url"
    hosts+=",${BASH_REMATCH[1]}"
done

"$python" - "$BUCKET" <<'END' || exit 2
import os, sys
from urllib.parse import urlsplit
import boto3, psycopg
try:
    psycopg.connect("", connect_timeout=10).close()
except psycopg.Error as error:
    sys.exit(f"error: PostgreSQL at {os.environ['PGHOST']}: {str(error).splitlines()[0]}")
bucket = urlsplit(sys.argv[1]).netloc
try:
    boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL")).head_bucket(Bucket=bucket)
except Exception as error:
    sys.exit(f"error: BUCKET s3://{bucket}: {str(error).splitlines()[0]}")
END

# Only guards the form by which an administrator adds a user; all workers must have the same one.
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')}"
export MLFLOW_FLASK_SERVER_SECRET_KEY
# A worker that is busy for 5 s, as one that starts on a busy machine is, would be ended and started anew, for ever.
exec "$python" -m mlflow server --app-name basic-auth --backend-store-uri "$database" \
    --artifacts-destination "$BUCKET" --host "$LISTEN" --port "$PORT" --workers "$WORKERS" \
    --allowed-hosts "$hosts" --cors-allowed-origins "$TRACKING_URL" --uvicorn-opts "--timeout-worker-healthcheck 60"
