"""The script that Streamlit runs on every page: what surrounds a page, then the page."""

__package__ = "saelab.dashboards.pages"

from ..app import run_app

if __name__ == "__main__":
    run_app()
