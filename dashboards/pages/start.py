"""The script that Streamlit runs: it hands over to the shell, which runs the page asked for.

Streamlit runs it as a script outside any package, so it names its package in full.
"""

from importlib import import_module

if __name__ == "__main__":
    import_module("saelab.dashboards.shell").run_app()
