"""The dataflow report as part of a page."""

from __future__ import annotations

from ..dataflow import Dataflow
from .text import escape


def dataflow_html(dataflow: Dataflow) -> str:
    """Summary, and a list of what is on the critical path, parallel or shared."""
    items = "\n".join(
        f'<tr><td><span class="on">{escape(what)}</span></td><td>{escape(who)}</td></tr>'
        for what, who in dataflow.lines()
    )
    table = f'<div class="wide"><table><tbody>\n{items}\n</tbody></table></div>' if items else ""
    return f"<p>{escape(dataflow.summary())}.</p>{table}"
