"""The style that all pictures share. Needs matplotlib: `pip install 'earl_jax[plot]'`.

Backgrounds are transparent, for white and for black pages.
"""

import pathlib
from typing import Any

from earl_jax.config import UserError

__all__ = ['COLORS', 'INK', 'legend', 'matplotlib', 'new_figure', 'save']

COLORS = ('#3b82d6', '#d9730d', '#2e9e5b', '#9b6ddb', '#d9485f', '#1a9aa8', '#b58a00', '#c75ba8')
INK = '#6e7781'  # axes and their text: between white and black


def matplotlib() -> Any:
  """The library, which the rest of the package can do without. Raises UserError where it is not installed."""
  try:
    import matplotlib as library
    import matplotlib.figure
    import matplotlib.patches
  except ImportError:
    raise UserError("pictures need matplotlib, which is not installed; pip install 'earl_jax[plot]'") from None
  return library


def new_figure(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], layout: str = 'constrained', **kwargs):
  """(figure, axes) in this module's style, without any state of pyplot. `kwargs` go to `Figure.subplots`."""
  style = {
      'axes.axisbelow': True, 'axes.edgecolor': INK, 'axes.facecolor': 'none', 'axes.grid': True,
      'axes.labelcolor': INK, 'axes.spines.right': False, 'axes.spines.top': False, 'axes.titlecolor': INK,
      'figure.facecolor': 'none', 'font.size': 10, 'grid.alpha': 0.25, 'grid.color': INK, 'grid.linewidth': 0.6,
      'xtick.color': INK, 'ytick.color': INK,
  }
  with matplotlib().rc_context(style):
    figure = matplotlib().figure.Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **kwargs)


def legend(axes: Any) -> None:
  """A legend of up to five columns above `axes`."""
  axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, labelcolor=INK)


def save(figure: Any, path: str | pathlib.Path) -> None:
  """Writes a figure as PNG or SVG, by the suffix of `path`, whose folder is made if need be.

  Raises:
    UserError: another suffix.
  """
  path = pathlib.Path(path)
  if path.suffix not in ('.png', '.svg'):
    raise UserError(f'path={str(path)!r}: pictures are PNG or SVG; end it in .png or .svg')
  path.parent.mkdir(parents=True, exist_ok=True)
  with matplotlib().rc_context({'svg.hashsalt': 'earl_jax'}):  # the same picture is the same file
    figure.savefig(path, dpi=200, metadata={'Date': None} if path.suffix == '.svg' else None)
