"""Pictures of compiled models: SVG graphs and charts, HTML pages, DOT text. No dependencies."""

from .chart import Series, line_chart_svg
from .dot import to_dot
from .graph import graph_svg

__all__ = ["Series", "graph_svg", "line_chart_svg", "to_dot"]
