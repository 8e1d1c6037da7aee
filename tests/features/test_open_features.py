"""The example of `saelab.open_features`, on a store that the real builder wrote."""

import doctest

import saelab


def test_the_example_holds(tiny_store_path):
    globs = {"saelab": saelab, "store_file": tiny_store_path}
    [example] = doctest.DocTestFinder(recurse=False).find(
        saelab.open_features, "open_features", globs=globs
    )
    runner = doctest.DocTestRunner()
    runner.run(example)
    assert example.examples and not runner.failures
