from __future__ import annotations

import json
import subprocess
import sys

import pytest

from saelab.cache.config import HarvestConfig, TokenFilter
from saelab.errors import ConfigError


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        HarvestConfig(
            hook_points=(),
            context_length=1,
            n_tokens=3,
            contexts_per_shard=0,
            rows=TokenFilter(exclude_positions=(0, 5)),
        )
    problems = caught.value.problems
    for name in (
        "hook_points",
        "context_length",
        "contexts_per_shard",
        "n_tokens",
        "exclude_positions",
    ):
        assert any(name in problem for problem in problems), name


def test_unknown_dtypes_are_named():
    config = HarvestConfig()
    # Set behind the type checks of the test run, which would complain first.
    object.__setattr__(config, "model_dtype", "int8")
    object.__setattr__(config, "cache_dtype", "float16")
    with pytest.raises(ConfigError, match=r"model_dtype: 'int8'.*cache_dtype: 'float16'"):
        config.__post_init__()


def test_a_hook_point_twice_is_refused():
    with pytest.raises(ConfigError, match="names one twice"):
        HarvestConfig(hook_points=("a", "a"))


def test_contexts_and_shards_are_rounded_up():
    config = HarvestConfig(n_tokens=4097, batch_contexts=16, contexts_per_shard=250)
    assert config.n_contexts == 17
    assert config.shard_contexts == 256
    assert HarvestConfig(n_tokens=None).n_contexts is None


def test_settings_survive_json():
    config = HarvestConfig(rows=TokenFilter(exclude_positions=(3, 4), max_norm_ratio=None))
    recorded = json.loads(json.dumps(config.to_json()))
    assert recorded == config.to_json()
    assert TokenFilter.from_json(recorded["rows"]) == config.rows


def test_a_rule_from_a_later_version_is_refused():
    with pytest.raises(ConfigError, match="sparkle"):
        TokenFilter.from_json({"sparkle": True})


def test_settings_load_no_torch():
    program = (
        "import sys; import saelab.cache.config; "
        "print([name for name in ('torch', 'saelab.text.contexts') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
