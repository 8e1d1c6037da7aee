"""The look and the one script of a report page."""

CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
"""What the page may load: nothing from anywhere."""

STYLE = """
:root {
  --page: #ffffff; --card: #f6f7f9; --text: #1b1f24; --muted: #55606c; --line: #d5dae0;
  --accent: #0b62ab;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2026; --text: #e8eaed; --muted: #a7b0ba; --line: #3a424c;
    --accent: #7ab8ee;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
}
header, main { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.75rem; }
main {
  padding-bottom: 4rem; display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem;
}
main > * { grid-column: 1 / -1; min-width: 0; }
main > figure { grid-column: auto; }
main > figure.wide { grid-column: 1 / -1; }
@media (max-width: 60rem) { main > figure { grid-column: 1 / -1; } }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 1.5rem 0 0; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: 0; max-width: 60rem; }
.subtitle { color: var(--muted); overflow-wrap: anywhere; }
.skip {
  position: absolute; left: -100vw; padding: .5rem 1rem; background: var(--page);
  color: var(--accent);
}
.skip:focus { left: 0; top: 0; z-index: 10; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
figure {
  margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px;
}
figcaption, caption { color: var(--muted); font-size: .875rem; }
caption { text-align: left; padding: .25rem 0; }
.plot { width: 100%; min-height: 340px; }
.plot svg text { fill: var(--text) !important; }
.plot .hoverlayer text { fill: #ffffff !important; }
details { margin-top: .5rem; font-size: .875rem; }
details .scroll { max-height: 20rem; }
summary { cursor: pointer; color: var(--accent); width: fit-content; }
.scroll { overflow: auto; }
table { border-collapse: collapse; min-width: min(100%, 44rem); font-size: .9375rem; }
details table { font-size: .8125rem; }
th, td {
  text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0;
  border-bottom: 1px solid var(--line);
}
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 600; overflow-wrap: break-word; }
.defined th:first-child { width: 17rem; }
.defined th:nth-child(2) { width: 6rem; }
.defined th:nth-child(3) { width: 10rem; }
.defined table { width: 100%; table-layout: fixed; min-width: 52rem; }
td, th { overflow-wrap: break-word; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
@media print { .skip, details { display: none; } figure { break-inside: avoid; } }
"""

SCRIPT = """
plots.forEach((plot, index) => {
  const config = {displayModeBar: false, responsive: true};
  Plotly.newPlot("plot-" + index, plot.data, plot.layout, config);
});
"""
