#!/usr/bin/env bash
# Create the environment of sae-dashboard, which the features benchmark compares with. It has one of its own because it
# needs older transformers and datasets than the other peers.
#
#   benchmarks/setup_sae_dashboard.sh [FOLDER]      default: .venv-peers-sae-dashboard; PYTHON chooses the interpreter
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:-$here/../.venv-peers-sae-dashboard}"
pins="$here/constraints-sae-dashboard.txt"
pinned="$folder/.pins"

if [ -f "$pinned" ] && cmp -s "$pins" "$pinned"; then
  echo "sae-dashboard: $folder is up to date"
  exit 0
fi

"${PYTHON:-python3}" -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
# torch first, with its own requirements: whatever build the index offers is then kept by the rest, which is installed
# without resolving anything.
"${pip[@]}" --constraint "$pins" torch==2.13.0
"${pip[@]}" --no-deps --requirement "$pins"
"$folder/bin/python" -c "import sae_dashboard.sae_vis_runner"
cp "$pins" "$pinned"
echo "sae-dashboard: ready in $folder"
