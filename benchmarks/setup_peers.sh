#!/usr/bin/env bash
# Create the environment of the peers that the benchmarks and the interchange tests compare with. They need an environment of
# their own because sae-lens 6 pins an older transformer-lens than saelab uses.
#
#   benchmarks/setup_peers.sh [FOLDER]      default: .venv-peers beside the Makefile; PYTHON chooses the interpreter
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:-$here/../.venv-peers}"
pins="$here/constraints-peers.txt"
pinned="$folder/.pins"

if [ -f "$pinned" ] && cmp -s "$pins" "$pinned"; then
  echo "peers: $folder is up to date"
  exit 0
fi

"${PYTHON:-python3}" -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
# torch first, with its own requirements: whatever build the index offers (CPU here) is then kept by the rest, which is
# installed without resolving anything, so that no second torch and no CUDA packages can come in.
"${pip[@]}" --constraint "$pins" torch==2.13.0
"${pip[@]}" --no-deps --requirement "$pins"
# Imported once, so that a broken set is noticed here and not in the middle of a benchmark.
"$folder/bin/python" -c "import dictionary_learning, sae_lens, sparsify"
cp "$pins" "$pinned"
echo "peers: ready in $folder"
