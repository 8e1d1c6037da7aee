"""Which labels are shown as images: small bitmaps in the folders given, nothing else."""

from __future__ import annotations

from saelab.dashboards.widgets.pictures import MOST_BYTES, picture

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20


def test_only_small_bitmaps_in_the_folders_given_are_shown(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(PNG)
    (inside / "big.png").write_bytes(PNG + b"0" * MOST_BYTES)
    (inside / "page.png").write_text("<svg onload=alert(1)>")
    (inside / "a.svg").write_text("<svg/>")
    (inside / "link.png").symlink_to(outside / "a.png")
    for shown in ("a.png", str(inside / "a.png"), "a.png · position 3"):
        assert picture(shown, [inside]).startswith('<img src="data:image/png;base64,')
    hidden = ["../out/a.png", str(outside / "a.png"), "big.png", "page.png", "a.svg", "link.png"]
    hidden += ["none.png", "a cat", "http://host/a.png", "\0.png", "x" * 5000 + ".png"]
    for label in hidden:
        assert picture(label, [inside]) == ""
    assert picture("a.png", []) == ""
    assert "<b>" not in picture("a.png · position <b>", [inside])
