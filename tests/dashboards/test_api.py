"""`saelab serve`: its numbers are the store's and the model's, and only who may ask is answered."""

import json
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from live_world import TEXT, tiny_dictionary, write_live_run
from test_live_pages import HOSTILE, reading_of
from toy_store import N_FEATURES

from saelab.dashboards.api import make_app
from saelab.dashboards.serve_command import TOKEN_VARIABLE, main, protect
from saelab.errors import ConfigError, ResourceError, SaelabError
from saelab.features.labels import LabelBook
from saelab.features.lists import FeatureList, ListedFeature, list_from_bytes, shelf_of
from saelab.features.reader import FeatureStore

TOKEN = "a-token-of-sixteen-or-more"
KEY = {"x-api-key": TOKEN}
TOY = "/dictionaries/toy-model/0-first"


def client_of(*roots, **protection):
    app = make_app(roots)
    given = {"token": None, "hosts": ("127.0.0.1",), "open_to_read": True} | protection
    protect(app, given.pop("token"), **given)
    return TestClient(app, base_url="http://127.0.0.1:8502")


@pytest.fixture(scope="module")
def client(world):
    return client_of(world)


@pytest.fixture(scope="module")
def live(tiny_model, tmp_path_factory):
    root = tmp_path_factory.mktemp("api") / "live"
    folder = write_live_run(root / "tiny", tiny_model)
    client = client_of(root, token=TOKEN)
    (known,) = client.get("/dictionaries").json()
    return client, {"modelId": known["model"], "layer": known["source"]}, folder


def test_dictionaries_are_listed_by_the_addresses_that_find_them(client):
    known = client.get("/dictionaries").json()
    assert [(each["model"], each["source"]) for each in known] == [
        ("toy-model", "0-first"),
        ("toy-model", "0-second"),
    ]
    assert known[0]["content_hash"] == "toyhash" and known[0]["d_sae"] == N_FEATURES
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/dictionaries", "/api/steer"}
    front = client.get("/").text
    assert "GET /dictionaries" in front and "http:" not in front.replace("http-equiv", "")


def test_features_are_those_of_the_store(client, world):
    store = FeatureStore(world / "demo/dictionaries/first")
    answer = client.get(f"{TOY}/features", params={"sort": "density", "descending": True}).json()
    density = np.nan_to_num(store.table()["density"])
    rows = answer["features"]
    assert answer["total"] == N_FEATURES
    assert [row["density"] for row in rows] == pytest.approx(np.sort(density)[::-1].tolist())
    assert rows[0]["flags"] == ["dense"]
    found = client.get(f"{TOY}/features", params={"query": "cat", "limit": 1}).json()
    hits = store.search("cat")
    assert found["total"] == len(hits.features)
    assert found["features"][0]["index"] == hits.features[0]
    assert found["features"][0]["found_in"] == hits.where(int(hits.features[0]))
    whole = client.get(f"{TOY}/features/3").json()
    assert whole["feature"]["n_active"] == store.feature(3).n_active
    assert whole["made_from"]["dictionary_hash"] == "toyhash"
    assert client.get(f"{TOY}/features", params={"start": N_FEATURES}).json()["features"] == []


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        (f"{TOY}/features/{N_FEATURES}", 404, "features 0 to"),
        (f"{TOY}/features/-1", 404, "features 0 to"),
        (f"{TOY}/features/x", 422, "integer"),
        ("/dictionaries/toy-model/../features", 404, ""),
        ("/dictionaries/toy-model/nothing/features", 404, "GET /dictionaries"),
        (f'{TOY}/features?query="open', 400, "is not closed"),
        (f"{TOY}/features?query=/(a%2B)%2Bc/%20/((/", 400, "no regular expression"),
        (f"{TOY}/features?sort=denisty", 400, "density"),
        (f"{TOY}/features?limit=0", 422, "greater"),
        (f"{TOY}/activations?text=", 422, "1 character"),
        (f"{TOY}/activations?text={'x' * 4001}", 422, "4000"),
        (f"{TOY}/steer?text=a", 422, "edit"),
        ("/lists/..%2F..%2Fetc%2Fpasswd", 404, ""),
        ("/lists/nothing", 400, "there is no list"),
        ("/api/feature/toy-model/0-first/99", 404, "features 0 to"),
    ],
)
def test_what_cannot_be_answered_is_said(client, path, status, words):
    answer = client.get(path)
    assert answer.status_code == status and words in answer.text
    assert "Traceback" not in answer.text


def test_a_damaged_store_is_an_answer(world, tmp_path):
    import shutil

    root = shutil.copytree(world, tmp_path / "all")
    store = root / "demo/dictionaries/first/features.sqlite"
    store.write_bytes(store.read_bytes()[:1000])
    answer = client_of(root).get(f"{TOY}/features")
    assert answer.status_code == 500 and "features.sqlite" in answer.json()["detail"]


def test_activations_on_a_text_are_the_dictionary_s(live, tiny_model):
    client, keys, _ = live
    _, codes = reading_of(tiny_model, TEXT)
    answer = client.get(
        f"/dictionaries/{'/'.join(keys.values())}/activations", params={"text": TEXT}
    )
    content = answer.json()
    assert content["n_features"] == int((codes > 0).any(0).sum())
    peaks = codes.amax(0)
    for row in content["features"]:
        assert row["peak"] == pytest.approx(float(peaks[row["index"]]), rel=1e-5)
        assert row["values"][1:] == pytest.approx(codes[:, row["index"]].tolist(), rel=1e-5)
    body = {"feature": {**keys, "index": str(content["features"][0]["index"])}, "customText": TEXT}
    new = client.post("/api/activation/new", json=body, headers=KEY).json()
    assert new["values"] == content["features"][0]["values"]
    assert new["tokens"] == content["tokens"] and new["maxValue"] == content["features"][0]["peak"]
    both = client.post("/api/activation/new", json=body | {"customText": [TEXT, "a"]}, headers=KEY)
    assert both.json()[0] == new and len(both.json()) == 2
    asked = {"modelId": keys["modelId"], "sourceSet": "tiny", "text": TEXT, "numResults": 3}
    search = {**asked, "selectedLayers": [keys["layer"]]}
    found = client.post("/api/search-all", json=search, headers=KEY).json()
    assert [int(each["index"]) for each in found["result"]] == [
        row["index"] for row in content["features"][:3]
    ]
    at = client.post("/api/search-all", json={**search, "sortIndexes": [2]}, headers=KEY).json()
    expected = codes[1].argsort(descending=True, stable=True)[:3].tolist()
    assert [int(each["index"]) for each in at["result"]] == expected
    for hostile in HOSTILE:
        text = {"text": hostile}
        path = f"/dictionaries/{'/'.join(keys.values())}/activations"
        assert client.get(path, params=text).status_code == 200


def test_steering_adds_what_it_was_asked_to(live):
    client, keys, folder = live
    store, (model, source) = FeatureStore(folder), keys.values()
    feature = int(np.argmax(store.table()["max_act"]))
    path = f"/dictionaries/{model}/{source}/steer"
    asked = {"text": TEXT, "tokens": 5, "temperature": 0}
    nothing = client.get(path, params={**asked, "edit": f"{feature}:add:0"}).json()
    assert nothing["baseline"] == nothing["steered"] and nothing["kl_of_next_token"] == 0
    much = client.get(path, params={**asked, "edit": [f"{feature}:add:50", "1:ablate"]}).json()
    assert much["baseline"] == nothing["baseline"] and much["kl_of_next_token"] > 0.01
    strength = 50 * float(store.table()["max_act"][feature])
    body = {"prompt": TEXT, "modelId": model, "n_tokens": 5, "temperature": 0, "seed": 0}
    body |= {"features": [{**keys, "index": feature, "strength": strength / 2}]}
    steered = client.post("/api/steer", json={**body, "strength_multiplier": 2}, headers=KEY).json()
    assert steered["DEFAULT"] == TEXT + nothing["baseline"]
    only = client.get(path, params={**asked, "edit": f"{feature}:add:50"}).json()
    assert steered["STEERED"] == TEXT + only["steered"]
    for wrong in ({"freq_penalty": 2}, {"steer_method": "ORTHOGONAL_DECOMP"}, {"stream": True}):
        answer = client.post("/api/steer", json={**body, **wrong}, headers=KEY)
        assert answer.status_code == 422 and next(iter(wrong)) in answer.text
    for edit, words in (("x:add:1", "feature:kind:strength"), ("1:push:1", "add, clamp or ablate")):
        answer = client.get(path, params={**asked, "edit": edit})
        assert answer.status_code == 400 and words in answer.json()["detail"]


def test_neuronpedia_s_feature_is_that_of_its_export(live, tmp_path):
    """Scripts that read the one read the other."""
    import gzip

    from saelab.dictionary import load_dictionary
    from saelab.features.neuronpedia import export_neuronpedia

    client, keys, folder = live
    book = LabelBook(
        folder / "feature_labels.sqlite", load_dictionary(folder).content_hash, N_FEATURES
    )
    label = book.add(3, "royalty \u202e", author="Ada")
    out = export_neuronpedia(load_dictionary(folder), tmp_path)
    answer = client.get(f"/api/feature/{'/'.join(keys.values())}/3").json()
    book.delete(label.id)
    # The toy store says that it is of another model than the dictionary it was put beside.
    said_by_store = {"modelId", "hookName"}

    def plain(row):
        return {key: value for key, value in row.items() if key not in said_by_store}

    def exported(kind):
        lines = gzip.decompress((out / kind / "batch-0.jsonl.gz").read_bytes()).splitlines()
        return [plain(row) for row in map(json.loads, lines) if row["index"] == "3"]

    for kind in ("activations", "explanations"):
        assert [plain(row) for row in answer.pop(kind)] == exported(kind)
    (row,) = exported("features")
    assert row.pop("hasVector") and np.allclose(row.pop("vector"), tiny_dictionary().W_dec[3])
    assert not answer.pop("hasVector") and answer.pop("vector") == []
    assert plain(answer) == row


def test_search_by_meaning_finds_explanations(live, monkeypatch):
    client, keys, folder = live
    from saelab.dictionary import load_dictionary

    def likeness(path, labels, query):
        assert path.parent == folder and query == "kings"
        return {label.feature: 1.0 / (1 + label.feature) for label in labels}

    for module in ("api", "neuronpedia_api"):
        monkeypatch.setattr(f"saelab.dashboards.{module}.likeness_of_explanations", likeness)
    book = LabelBook(
        folder / "feature_labels.sqlite", load_dictionary(folder).content_hash, N_FEATURES
    )
    labels = [book.add(feature, f"word {feature}", author="Ada") for feature in (5, 2)]
    asked = {"query": "kings", "by": "explanations"}
    path = f"/dictionaries/{'/'.join(keys.values())}/features"
    rows = client.get(path, params=asked).json()["features"]
    assert [(row["index"], row["likeness"]) for row in rows] == [(2, 1 / 3), (5, 1 / 6)]
    body = {"modelId": keys["modelId"], "layers": [keys["layer"]], "query": "kings"}
    results = client.post("/api/explanation/search", json=body, headers=KEY).json()["results"]
    assert [(each["index"], each["description"]) for each in results] == [
        ("2", "word 2"),
        ("5", "word 5"),
    ]
    for label in labels:
        book.delete(label.id)


def test_embedded_pages_are_whole_harmless_and_can_be_framed(world, tmp_path):
    import shutil

    root = shutil.copytree(world, tmp_path / "all")
    client = client_of(root)
    folder = root / "demo/dictionaries/first"
    book = LabelBook(folder / "feature_labels.sqlite", "toyhash", N_FEATURES)
    book.add(3, "<script>alert(1)</script> \u202e", author="<b>")
    items = [
        ListedFeature(dictionary=which, name="x", feature=feature, note="<img src=x>\n\u2066")
        for which, feature in (("toyhash", 3), ("otherhash", 5), ("elsewhere", 1))
    ]
    kept = shelf_of([root]).add(FeatureList(name="<i>\u202e").with_features(items))
    for path in ("toy-model/0-first/3", f"lists/{kept.id}"):
        answer = client.get(f"/embed/{path}", headers={"sec-fetch-site": "cross-site"})
        page = answer.text
        assert answer.status_code == 200 and "x-frame-options" not in answer.headers
        assert "default-src 'none'" in page and "·U+202E·" in page
        assert not re.search(r"<script|<img|<i>|<b>alert|<iframe|<link|href=", page)
        assert not {"\u202e", "\u2066"} & set(page)
        assert "Feature 3" in page
    assert "Feature 5" in page and "no feature store of this dictionary is here" in page
    assert client.get("/lists").json()["lists"] == [
        {"id": kept.id, "name": kept.name, "features": 3, "sha256": kept.sha256}
    ]
    given = client.get(f"/lists/{kept.id}").content
    assert list_from_bytes(given, "given").sha256 == kept.sha256
    assert client.get("/embed/toy-model/0-first/99").status_code == 404


def test_pages_of_other_sites_and_other_names_get_nothing(client):
    for headers in (
        {"host": "evil.example"},
        {"host": "evil.example:8502"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ):
        answer = client.get("/dictionaries", headers=headers)
        assert answer.status_code == 403 and "toyhash" not in answer.text
    own = {"origin": "http://127.0.0.1:8502", "sec-fetch-site": "same-origin"}
    assert client.get("/dictionaries", headers=own).status_code == 200


def test_only_get_is_answered_without_a_token(client):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/api/steer", json={}).status_code == 403
        assert client.request(method, "/dictionaries", headers=KEY).status_code == 403


def test_where_others_reach_it_everything_needs_the_token(world):
    client = client_of(world, token=TOKEN, open_to_read=False)
    for path in ("/", "/openapi.json", "/dictionaries", f"/embed{TOY[13:]}/3", "/nothing"):
        answer = client.get(path)
        assert answer.status_code == 401 and "Basic" in answer.headers["www-authenticate"]
    for wrong in (
        {"x-api-key": TOKEN[:-1]},
        {"x-api-key": ""},
        {"authorization": "Bearer"},
        {"authorization": "Basic !"},
        {"authorization": "Basic /w=="},
        {"authorization": ""},
    ):
        assert client.get("/dictionaries", headers=wrong).status_code == 401
    for right in (KEY, {"authorization": f"Bearer {TOKEN}"}):
        assert client.get("/dictionaries", headers=right).status_code == 200
    assert client.get("/dictionaries", auth=("any", TOKEN)).status_code == 200
    assert client.post("/api/steer", json={}, headers=KEY).status_code == 422


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--address", "0.0.0.0"], "needs a token: add --token-file"),
        (["--address", "::1"], "IPv4"),
        (["--port", "70000"], "0 to 65535"),
        (["--address", "203.0.113.7", "--token-file", "new"], "cannot be used"),
        (["--token-file", "open"], "can be read by others"),
        (["--token-file", "short"], "16 ASCII characters"),
    ],
)
def test_a_server_that_is_not_safe_does_not_start(world, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    for name, mode, text in (("open", 0o644, TOKEN), ("short", 0o600, "short")):
        Path(name).write_text(text)
        Path(name).chmod(mode)
    with pytest.raises((ConfigError, ResourceError, SaelabError), match=message):
        main([str(world), "--port", "0", *words])


def test_served_as_a_user_starts_it(world, tmp_path):
    """A token is made for its owner alone and told once; what is asked is not logged."""
    file, said = tmp_path / "token", []
    words = ["serve", str(world), "--port", "0", "--token-file", str(file)]
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "saelab.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        address = re.findall(r"http://127\.0\.0\.1:\d+", lines[0])[0]
        token = file.read_text().strip()
        until = time.monotonic() + 60
        while True:
            try:
                got = httpx.get(f"{address}/dictionaries")
                break
            except httpx.TransportError:
                assert time.monotonic() < until
                time.sleep(0.1)
        assert got.json()[0]["content_hash"] == "toyhash"
        headers = {"x-api-key": token}
        assert httpx.post(f"{address}/api/steer", json={}, headers=headers).status_code == 422
        assert httpx.post(f"{address}/api/steer", json={}).status_code == 401
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and rest == ""
        said.append(lines[1])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token in said[0] and token not in said[1] and str(file) in said[1]
