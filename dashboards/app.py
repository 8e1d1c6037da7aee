"""What surrounds every page: the navigation, the pickers, and the list of pages."""

from __future__ import annotations

import streamlit as st

from . import url_state
from .context import (
    address_problem,
    chosen_dictionary,
    chosen_run,
    default_dictionary,
    default_run,
    link_params,
    run_index,
)
from .widgets.page_parts import plain, show_problem

# Drawn here because Streamlit would fetch the named icons and emoji from another host.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="64" height="64">'
    '<rect width="32" height="32" rx="7" fill="#0b62ab"/><g fill="#fff">'
    '<circle cx="9" cy="10" r="3"/><circle cx="23" cy="10" r="3"/><circle cx="16" cy="23" r="4"/>'
    '</g><path d="M9 10 16 23 23 10" stroke="#fff" stroke-width="2" fill="none"/></svg>'
)

STYLE = (
    "[data-testid=stMainBlockContainer]{padding:2.2rem 2.5rem 3rem}"
    "[data-testid=stHeader]{height:2rem;min-height:2rem}"
    "[data-testid=stPageLink] p{white-space:normal}"
    # Columns that hold charts stand below one another rather than being narrow.
    "[data-testid=stHorizontalBlock]:has(>[data-testid=stColumn] [data-testid=stPlotlyChart])"
    "{flex-wrap:wrap}"
    "[data-testid=stHorizontalBlock]:has([data-testid=stPlotlyChart])>[data-testid=stColumn]"
    "{min-width:min(100%,20rem)}"
    "@media(max-width:640px){[data-testid=stMainBlockContainer]{padding:2.2rem 1rem 3rem}}"
    "[data-testid=stCaptionContainer],[data-testid=stCaptionContainer] p"
    "{color:light-dark(#55606c,#a7b0ba)!important;opacity:1}"
    ":focus-visible{outline:2px solid light-dark(#0b62ab,#7ab8ee)!important;outline-offset:1px}"
    "@media (prefers-reduced-motion:reduce){*{animation:none!important;transition:none!important}}"
)

FOLLOW_LINKS = """<script>
if (!window.saelabLinks) {
  window.saelabLinks = true;
  document.addEventListener("click", event => {
    const link = event.target.closest("[data-testid=stHtml] a[href]");
    const other = event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey;
    if (!link || other || new URL(link.href).origin !== location.origin) return;
    event.preventDefault();
    history.pushState({}, "", link.href);
    dispatchEvent(new PopStateEvent("popstate"));
  });
}
</script>"""
"""Links in HTML stay in the session, as Streamlit's do: loading a page again takes seconds."""

PAGES = {
    "home": ("Home", ":material/home:"),
    "explore": ("Explore", ":material/table_rows:"),
    "feature": ("Feature", ":material/lightbulb:"),
    "map": ("Map", ":material/scatter_plot:"),
    "prompt": ("Prompt", ":material/chat:"),
    "steer": ("Steer", ":material/tune:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "lists": ("Lists", ":material/list:"),
    "training": ("Training", ":material/show_chart:"),
    "evals": ("Evals", ":material/fact_check:"),
}
"""In the order of the navigation: by name of its file and address, title and icon of each page."""


def run_app() -> None:
    """One run of the app: configure, draw what surrounds the page, then the page."""
    st.set_page_config(page_title="saelab", page_icon=ICON, layout="wide")
    pages = [
        st.Page(f"{name}.py", title=title, icon=icon, url_path=name, default=name == "home")
        for name, (title, icon) in PAGES.items()
    ]
    page = st.navigation(pages, position="hidden")
    st.html(f"<style>{STYLE}</style>")
    st.html(FOLLOW_LINKS, unsafe_allow_javascript=True)
    url_state.begin(page.title.lower())
    problem = address_problem()
    with st.sidebar:
        # The links keep the chosen dictionary in the address.
        params = {} if problem else link_params()
        st.markdown("**saelab**")
        for name, (title, icon) in PAGES.items():
            # That page needs more than a dictionary to show.
            if name != "feature":
                st.page_link(f"{name}.py", label=title, icon=icon, query_params=params)
        if problem is None:
            _draw_pickers()
    if problem is None:
        page.run()
    else:
        show_problem(problem)
        st.page_link("home.py", label="Go to Home", query_params={})


def _draw_pickers() -> None:
    index = run_index()
    run, entry = chosen_run(), chosen_dictionary()
    first, fallback = default_run(index), default_dictionary(run)
    if run is None or first is None:
        return
    ids = [run.id for run in index.runs]
    url_state.bind("pick_run", "run", first.id, {name: name for name in ids}.__getitem__)
    # A chosen run starts at its first dictionary, and features of another mean nothing there.
    st.selectbox("Run", ids, key="pick_run", on_change=_picked, args=(["run"],))
    if entry is None or fallback is None:
        return
    names = [entry.name for entry in run.dictionaries]
    url_state.bind("pick_sae", "sae", fallback.name, {name: name for name in names}.__getitem__)
    st.selectbox("Dictionary", names, key="pick_sae", on_change=_picked, args=(["run", "sae"],))
    size = entry.facts.get("d_sae")
    facts = [
        entry.facts.get("method"),
        f"{size:,} features" if size else None,
        entry.hook_point,
        None if entry.store_path else "no feature store",
    ]
    st.caption(plain(" · ".join(str(fact) for fact in facts if fact)))


def _picked(params: list[str]) -> None:
    st.query_params.from_dict({param: st.session_state[f"pick_{param}"] for param in params})
