"""Hostile texts in pictures of episodes: each is drawn, and none is a formula, a tag or an instruction."""

import warnings
from xml.etree import ElementTree

import pytest

from earl_jax.run import episodes
from tests.view import hostile

A_PICTURE = 50  # texts
DRAWN = {'svg', 'metadata', 'RDF', 'Work', 'type', 'date', 'format', 'creator', 'Agent', 'title', 'defs', 'style', 'g',
         'path', 'use', 'clipPath', 'rect'}


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['png', 'svg'])
def test_hostile_texts_are_drawn(monkeypatch, tmp_path, suffix):
  texts = [text[:200] for text in hostile.texts(5_000)]  # no token is longer
  monkeypatch.setattr(episodes, '_legend', lambda experiment: [])
  for start in range(0, len(texts), A_PICTURE):
    some = [episodes.Piece(text, i % 3, i % 2 == 0) for i, text in enumerate(texts[start : start + A_PICTURE])]
    monkeypatch.setattr(episodes, 'pieces', lambda *args, some=some: some)
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', message='.*Glyph.*missing')  # the font has no such character: a box is drawn
      path = tmp_path / f'{start}.{suffix}'
      episodes.draw_episode(None, None, 0, path)
    if suffix == 'png':
      assert path.stat().st_size > 1_000
      continue
    found = list(ElementTree.parse(path).iter())  # what is said is drawn as paths, and stands in comments at most
    assert not {element.tag.rpartition('}')[2] for element in found} - DRAWN
    assert not [name for element in found for name in element.attrib if name.startswith('on')]
