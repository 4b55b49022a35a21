"""README is short, and all it states can be found where it is measured."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text('utf-8')
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]


def test_it_is_a_front_door():
  assert len(README.splitlines()) <= 80


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text('utf-8')):
    if '://' not in target and not target.startswith('#'):
      path, _, anchor = target.partition('#')
      assert (page.parent / path).exists(), target
      if anchor:
        headings = re.findall(r'^#+ (.*)$', (page.parent / path).read_text('utf-8'), re.MULTILINE)
        assert anchor in {re.sub(r'[^\w\- ]', '', heading).lower().replace(' ', '-') for heading in headings}, target


@pytest.mark.parametrize('page', ['README.md', 'docs/environments.md'])
def test_what_is_quoted_of_an_example_stands_in_it(page):
  example = (ROOT / 'examples' / 'lookup.py').read_text('utf-8')
  quoted = re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text('utf-8'), re.DOTALL | re.MULTILINE)
  quoted = [text for text in quoted if 'class Dictionary' in text]
  assert quoted
  for line in '\n'.join(quoted).splitlines():
    assert line in example.splitlines(), line
