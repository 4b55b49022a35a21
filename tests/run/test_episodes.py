"""One episode as boxes: what they say, as a picture and as HTML."""

import html
import re
import struct

import numpy as np
import pytest

from earl_jax.run import episodes
from tests import core_fixtures as core


def ascii_of(text):
  """The rest may be spelt by several tokens."""
  return re.sub(r'[^\0-\x7f]', '', text)


@pytest.mark.parametrize('row', range(16))
def test_boxes_are_the_trajectory(row):
  trajectory = core.rolled_out()
  boxes = episodes.pieces(core.experiment(), trajectory, row)
  tokens = np.asarray(trajectory.tokens[row])[int(trajectory.start[row]) : int(trajectory.end[row])]
  assert ascii_of(''.join(box.text for box in boxes)) == ascii_of(core.tokenizer().decode(tokens))
  actions, vocab = np.asarray(trajectory.actions[row]), core.interface().space.vocab_size
  chosen = [box for box in boxes if box.decision]
  assert len(chosen) == (actions >= 0).sum()
  space, decided = core.interface().space, actions[actions >= 0]
  expected = [space.actions[a - vocab].description if a >= vocab else core.tokenizer().decode([a]) for a in decided]
  assert [box.text for box in chosen] == expected
  routes = [box.environment for box in chosen if box.text in core.ROUTES.values() and box.environment > 0]
  assert routes == [a - vocab + 1 for a in actions[(actions >= vocab) & (actions < vocab + space.num_environments)]]


def test_a_call_box_by_box():
  """What an environment writes has its colour and is no decision; after it, language."""
  boxes = [box for row in range(16) for box in episodes.pieces(core.experiment(), core.rolled_out(), row)]
  text = '\0'.join(f'{box.environment}{"*" if box.decision else ""}{box.text}' for box in boxes)
  call = r'1\* compare\x001\* [A-E]\x001 and\x001\* [A-E]\x001:\x001 [A-E]\x001 [<>]\x001 [A-E]\x001\n\x000\*'
  assert re.search(call, text)


def test_html_is_escaped():
  experiment, trajectory = core.experiment(), core.rolled_out()
  page = episodes.episode_html(experiment, trajectory, 0)
  assert set(re.findall(r'</?\w+', page)) == {'<div', '</div', '<span', '</span', '<br'}
  spans = re.findall(r'<span style="[^"<>]*">([^<>]*)</span>', page)
  boxes = [*episodes.pieces(experiment, trajectory, 0), *episodes._legend(experiment)]
  assert [html.unescape(text) for text in spans] == [episodes._visible(box.text) for box in boxes]
  assert any('<|im_start|>' == html.unescape(text) for text in spans)


def test_picture_of_a_trajectory(tmp_path):
  for name in ('new/a.png', 'a.svg', 'b.svg'):
    episodes.draw_episode(core.experiment(), core.rolled_out(), 0, tmp_path / name)
  png = (tmp_path / 'new' / 'a.png').read_bytes()
  width, height = struct.unpack('>II', png[16:24])
  assert png.startswith(b'\x89PNG') and width <= episodes.WIDTH * 200 and height > 100
  assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_long_lines_wrap(tmp_path, monkeypatch):
  boxes = [episodes.Piece(' word$_{', 0, True)] * 100
  monkeypatch.setattr(episodes, 'pieces', lambda *_: boxes)
  episodes.draw_episode(core.experiment(), core.rolled_out(), 0, tmp_path / 'a.png')
  width, height = struct.unpack('>II', (tmp_path / 'a.png').read_bytes()[16:24])
  assert width <= episodes.WIDTH * 200 and height > 8 * episodes.ROW * 200
