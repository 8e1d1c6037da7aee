"""Caching that is killed outright, again and again, and resumed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saelab.cache.writer import write_caches


def start(program, out: Path, text: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, program.__file__, str(out), str(text)], env=environment
    )


def shards(out: Path) -> int:
    return len(list(out.glob("*/shard-*.safetensors")))


@pytest.mark.slow
def test_killed_at_random_points_it_ends_byte_for_byte_the_same(program, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for index in range(40):
        (text / f"{index}.txt").write_text(f"{index} the quick brown fox ~ jumps " * 20)
    chance = random.Random(0)
    out, kills = tmp_path / "out", 0
    while kills < 4:
        process = start(program, out, text)
        wanted = shards(out) + chance.randint(0, 12)
        while process.poll() is None and shards(out) < wanted:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.1)
        if process.poll() is None:
            kills += 1
            process.kill()
        process.wait()
        assert process.returncode in (0, -9)
        if process.returncode == 0:
            break
    assert kills >= 3, "the program finished too soon to be killed"
    process = start(program, out, text)
    assert process.wait() == 0
    model = program.TableModel(d_in=64)
    whole = write_caches(tmp_path / "whole", program.slow_config(text), model=model)
    for one in whole:
        other = out / one.name
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
        for file in one.glob("shard-*"):
            assert file.read_bytes() == (other / file.name).read_bytes(), file
        manifests = [json.loads((f / "manifest.json").read_text()) for f in (one, other)]
        when = {"created": "", "self_hash": ""}
        assert manifests[0] | when == manifests[1] | when
