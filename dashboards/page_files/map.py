"""The page "map" as Streamlit finds it: AppTest and deep links need a file for each page."""

from importlib import import_module

if __name__ == "__main__":
    import_module("saelab.dashboards.page_parts").run_page("map")
