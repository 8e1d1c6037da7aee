"""The script that Streamlit runs on every page: what surrounds a page, then the page."""

from saelab.dashboards.app import run_app

if __name__ == "__main__":
    run_app()
