"""What the address says reaches the boxes of a page, however often it is drawn."""

from saelab.dashboards.widgets.figures import crowded
from saelab.dashboards.widgets.html_tables import linked_table

FIRST = {"run": "all/demo", "sae": "first"}


def test_a_value_of_the_address_is_said_until_the_reader_gives_another(open_page):
    """Streamlit drops what a run drew where the next begins first, as after a store's check."""
    app = open_page("explore", q="script", show="active", **FIRST)
    for _ in range(2):
        box = app.text_input(key="explore_q")
        assert box.value == "script" and box.proto.set_value and box.proto.value == "script"
        assert app.selectbox(key="explore_show").proto.set_value
        app.run()
    box.set_value("zebra").run()
    box = app.text_input(key="explore_q")
    assert box.value == "zebra" and not box.proto.set_value  # nor what is typed meanwhile
    app.run()
    assert app.text_input(key="explore_q").value == "zebra"


def test_a_narrow_table_says_what_a_feature_is_before_where_it_was_found():
    columns = {"feature": [1], "found in": ["label"], "label": ["war"], "density": [0.5]}
    table = linked_table("Features", columns, ["feature?f=1"])
    assert '<td class="" title="war">' in table and '<td class="medium" title="label">' in table


def test_words_written_over_earlier_ones_are_left_out_of_a_small_map():
    words = [("government", 0.0, 0.0), ("state", 0.1, 0.01), ("year", 1.0, 0.0), ("of", 0.1, 1.0)]
    assert crowded(words) == [1]
    assert crowded(words, width=5000.0) == [] and crowded([]) == [] and crowded(words[:1]) == []
