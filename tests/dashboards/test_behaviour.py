"""No torch on pages that only read, and ten people at once."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from toy_store import APP

PROGRAM = """
import json, sys
from streamlit.testing.v1 import AppTest
for page, params in json.loads(sys.argv[2]):
    app = AppTest.from_file(sys.argv[1], default_timeout=60)
    for key, value in params.items():
        app.query_params[key] = value
    if page != "home":
        app.switch_page(f"{page}.py")
    app.run()
    assert not app.exception, app.exception
    assert app.title, page
print(sorted(m for m in sys.modules if m in ("torch", "transformers", "transformer_lens")))
"""
READING_PAGES = ("home", "explore", "feature", "map", "compare", "lists")


def test_reading_pages_load_no_torch(world):
    pages = [(page, {"f": "3"} if page == "feature" else {}) for page in READING_PAGES]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(APP), json.dumps(pages)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "SAELAB_DASHBOARD_ROOTS": json.dumps([str(world)])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[]"


def test_ten_readers_share_one_store(world):
    """Ten threads read and label through one handle; everybody sees the same numbers."""
    from saelab.dashboards.context import open_store

    store = open_store(world / "demo" / "dictionaries" / "first" / "features.sqlite")
    expected = [store.feature(f).n_active for f in range(store.n_features)]
    seen, problems = [], []

    def read():
        try:
            seen.append([store.feature(f, 4).n_active for f in range(store.n_features)])
            store.search("cat")
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert all(numbers == expected for numbers in seen) and len(seen) == 10


def test_a_store_built_again_is_opened_again(tmp_path):
    from toy_store import write_toy_store

    from saelab.dashboards.context import open_store

    path = write_toy_store(tmp_path / "features.sqlite")
    first = open_store(path)
    assert open_store(path) is first
    write_toy_store(tmp_path / "new.sqlite", "another").replace(path)
    assert open_store(path).manifest["made_from"]["dictionary_hash"] == "another"


def test_a_page_waits_for_no_check_and_is_taken_back_when_it_fails(
    open_page_of, world, tmp_path, monkeypatch
):
    """A store of 65,536 features takes ten seconds to check; a page settles within one."""
    from saelab.dashboards.context import open_store
    from saelab.errors import ArtifactError
    from saelab.features.reader import FeatureStore

    checked = threading.Event()

    def verify(store):
        assert checked.wait(timeout=60)
        raise ArtifactError(f"{store.path} was changed")

    monkeypatch.setattr(FeatureStore, "verify", verify)
    runs = shutil.copytree(world, tmp_path / "all")
    start = time.monotonic()
    assert open_store(runs / "demo/dictionaries/first/features.sqlite").feature(0).id == 0
    assert time.monotonic() - start < 1
    app = open_page_of(runs)("explore", run="all/demo", sae="first")
    assert app.title[0].value == "Explore" and not app.exception
    checked.set()
    for thread in threading.enumerate():
        if thread.name.startswith("check"):
            thread.join()
    for _ in range(2):  # and it stays refused
        app.run()
        assert not app.title and not app.exception
        assert any("was changed" in str(part.value) for part in (*app.warning, *app.error))


def test_a_changed_store_is_not_shown(tmp_path):
    from toy_store import write_toy_store

    from saelab.dashboards.context import open_store
    from saelab.errors import ArtifactError
    from saelab.features.schema import TABLES_HASH, hash_of_tables
    from saelab.formats.manifest import seal

    path = write_toy_store(tmp_path / "features.sqlite")
    with closing(sqlite3.connect(path)) as connection, connection:
        (text,) = connection.execute("SELECT content FROM manifest").fetchone()
        content = {k: v for k, v in json.loads(text).items() if k != "manifest_sha256"}
        sealed = json.dumps(seal({**content, TABLES_HASH: hash_of_tables(connection)}))
        connection.execute("UPDATE manifest SET content = ?", (sealed,))
    assert open_store(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE feature SET max_act = max_act + 1 WHERE id = 0")
    with pytest.raises(ArtifactError, match="was changed since it was built"):
        open_store(path)


def test_a_page_is_one_file_that_draws_itself():
    from saelab.dashboards.app import PAGES

    files = {path.name: path for path in Path(APP).parent.glob("[a-z]*.py") if path != APP}
    assert set(files) == {f"{name}.py" for name in PAGES}
    for path in files.values():
        assert path.read_text(encoding="utf-8").rstrip().endswith("run_page(render)")


def test_streamlit_finds_no_pages_of_its_own_beside_the_script():
    """With a folder `pages` beside it, a first link to a page would run that page alone."""
    assert not (Path(APP).parent / "pages").exists()
