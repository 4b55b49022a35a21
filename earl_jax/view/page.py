"""The viewer's page: one file, with its style, its script and its data inside."""

import base64
import hashlib
import html
from importlib import resources
from typing import Any

from earl_jax.view.data import encode

__all__ = ['page']

SCRIPTS = ('common.js', 'charts.js', 'tree.js', 'episodes.js')


def page(data: dict[str, Any]) -> str:
  """HTML that asks nothing of a network: its policy allows these very style and script, by their hashes, and no more.

  Whatever a model wrote is in the data, which is JSON; the script puts it into the page as text.
  """
  folder = resources.files('earl_jax.view') / 'static'
  style = _read(folder / 'page.css')
  script = "'use strict';\n" + '\n'.join(_read(folder / name) for name in SCRIPTS)
  policy = (
      f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; base-uri 'none'; "
      "form-action 'none'"
  )
  title = html.escape(data['name']).replace('{', '&#123;')
  parts = {
      '{{policy}}': policy, '{{title}}': title, '{{style}}': style, '{{script}}': script, '{{data}}': encode(data),
  }
  text = _read(folder / 'page.html')
  for name, part in parts.items():  # the data last: nothing in it is replaced
    head, _, tail = text.partition(name)
    text = head + part + tail
  return text


def _read(path: Any) -> str:
  return path.read_text(encoding='utf-8')


def _digest(text: str) -> str:
  return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
