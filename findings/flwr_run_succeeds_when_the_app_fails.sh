#!/usr/bin/env bash
# `flwr run --stream` ends with status 0 where the app failed: the log it prints holds the traceback and the line
# "Exit Code: 700", which is that of another process; its own is that the run was started. A script, a job of a scheduler
# or a test that trusts `flwr run ... && publish` publishes after a training that broke in its first round. What tells is
# `flwr list`: the run's status is finished:failed.
#   seen with flwr 1.42.0, ray 2.55.1, CPython 3.11, a ServerApp whose main raises RuntimeError:
#     Exit Code: 700
#     flwr run ended with 0
#     flwr list: finished:failed
# The example of securemodel and its page on federated learning say so; its own `securemodel federate` ends with 1.
set -euo pipefail
folder=$(mktemp -d)
export FLWR_HOME=$folder/home FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
trap 'pkill -f "$folder" || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet flwr==1.42.0 ray==2.55.1
export PATH=$folder/venv/bin:$PATH
mkdir -p "$folder/app/fails"
touch "$folder/app/fails/__init__.py"
cat > "$folder/app/pyproject.toml" <<'TOML'
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fails"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "fails.apps:server"
clientapp = "fails.apps:client"
TOML
cat > "$folder/app/fails/apps.py" <<'PYTHON'
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@server.main()
def main(grid, context):
    raise RuntimeError("the training broke")
PYTHON
cd "$folder"
code=0
timeout 240 flwr run "$folder/app" --stream >"$folder/log" 2>&1 || code=$?
grep -F -e "RuntimeError: the training broke" -e "Exit Code: 700" "$folder/log"
echo "flwr run ended with $code"
status=$(flwr list --format json | python -c 'import json, sys; print(json.load(sys.stdin)["runs"][0]["status"])')
echo "flwr list: $status"
[ "$code" = 0 ] && [ "$status" = finished:failed ]
