"""Self-contained HTML reports, and the figures of every suite drawn from its result file.

`Report` assembles a page that needs no network and follows the reader's light or dark theme;
`figures_of` draws the figures of an evaluation result, for a report and for the dashboard alike.
"""

from .figure import Figure
from .page import Report, unit_text
from .registry import FIGURES, figures_of

__all__ = ["FIGURES", "Figure", "Report", "figures_of", "unit_text"]
