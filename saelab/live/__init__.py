"""A model and a dictionary at work on text that somebody types: read, contrast, attribute, steer.

`session` runs the model and imports torch; `reading`, `contrast` and `lock` do not, so a page can
hold and order results without it.
"""
