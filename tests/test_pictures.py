"""Pictures: what the boxes say, what the curves mean, and the command."""

import html
import json
import re
import struct
import sys

import numpy as np
import pytest

from earl_jax import pictures, train
from earl_jax.config import UserError
from tests import core_fixtures as core
from tests.run import tiny


def make_run(rollouts=(10, 20, 30), **metrics):
  lines = [{'step': i} | {name: values[i] for name, values in metrics.items()} for i in range(len(rollouts))]
  return pictures.Run(lines, np.array(rollouts))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = tiny.parsed(tiny.write_model(tmp_path_factory.mktemp('model')), steps=2)
  folder = tmp_path_factory.mktemp('run')
  train.train(config, folder)
  return folder


@pytest.mark.parametrize('row', range(16))
def test_boxes_are_the_trajectory(row):
  trajectory = core.rolled_out()
  boxes = pictures.pieces(core.experiment(), trajectory, row)
  tokens = np.asarray(trajectory.tokens[row])[int(trajectory.start[row]) : int(trajectory.end[row])]
  ascii_of = lambda text: re.sub(r'[^\0-\x7f]', '', text)  # noqa: E731  the rest may be spelt by several tokens
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
  boxes = [box for row in range(16) for box in pictures.pieces(core.experiment(), core.rolled_out(), row)]
  text = '\0'.join(f'{box.environment}{"*" if box.decision else ""}{box.text}' for box in boxes)
  call = r'1\* compare\x001\* [A-E]\x001 and\x001\* [A-E]\x001:\x001 [A-E]\x001 [<>]\x001 [A-E]\x001\n\x000\*'
  assert re.search(call, text)


def test_html_is_escaped():
  experiment, trajectory = core.experiment(), core.rolled_out()
  page = pictures.trajectory_html(experiment, trajectory, 0)
  assert set(re.findall(r'</?\w+', page)) == {'<div', '</div', '<span', '</span', '<br'}
  spans = re.findall(r'<span style="[^"<>]*">([^<>]*)</span>', page)
  boxes = [*pictures.pieces(experiment, trajectory, 0), *pictures._legend(experiment)]
  assert [html.unescape(text) for text in spans] == [pictures._visible(box.text) for box in boxes]
  assert any('<|im_start|>' == html.unescape(text) for text in spans)


def test_picture_of_a_trajectory(tmp_path):
  for name in ('new/a.png', 'a.svg', 'b.svg'):
    pictures.trajectory(core.experiment(), core.rolled_out(), 0, tmp_path / name)
  png = (tmp_path / 'new' / 'a.png').read_bytes()
  width, height = struct.unpack('>II', png[16:24])
  assert png.startswith(b'\x89PNG') and width <= pictures.WIDTH * 200 and height > 100
  assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_long_lines_wrap(tmp_path, monkeypatch):
  boxes = [pictures.Piece(' word$_{', 0, True)] * 100
  monkeypatch.setattr(pictures, 'pieces', lambda *_: boxes)
  pictures.trajectory(core.experiment(), core.rolled_out(), 0, tmp_path / 'a.png')
  width, height = struct.unpack('>II', (tmp_path / 'a.png').read_bytes()[16:24])
  assert width <= pictures.WIDTH * 200 and height > 8 * pictures.ROW * 200


def test_band_is_mean_and_range():
  figure, axes = pictures.new_figure(figsize=(2, 2))
  # the second run ended early and keeps its 0.5; nobody measured at 20
  runs = [make_run(m=[0.0, None, 1.0]), make_run((10,), m=[0.5])]
  pictures.draw_band(axes, runs, 'm', color='#000000')
  pictures.draw_band(axes, runs, 'm', color='#000000', marker='o')
  pictures.draw_band(axes, runs, 'never measured', color='#000000')
  line, points = axes.lines
  assert line.get_xydata().tolist() == points.get_xydata().tolist() == [[10, 0.25], [30, 0.75]]
  band, = axes.collections
  corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
  assert {(10, 0.0), (10, 0.5), (30, 0.5), (30, 1.0)} <= corners


def test_run_is_read_while_it_trains(workdir, tmp_path):
  for name in ('config.json', 'metrics.jsonl'):
    (tmp_path / name).write_text((workdir / name).read_text())
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 2, "ex')
  run = pictures.read_run(tmp_path)
  assert run.rollouts.tolist() == [16, 32]
  assert np.isnan(run.values('eval/sort2/exact')).tolist() == [True, False]


def test_command(workdir, capsys):
  assert pictures.cli.run(pictures.main, pictures.define_flags, ['pictures', f'--workdir={workdir}']) == 0
  written = capsys.readouterr().out.split()
  assert written == [str(workdir / 'pictures' / name) for name in ('learning_curve.png', 'trajectory.png')]
  assert all(open(path, 'rb').read(4) == b'\x89PNG' for path in written)


def test_several_labels(workdir, tmp_path):
  pictures.learning_curve({'a': [workdir, workdir], 'b': [workdir]}, tmp_path / 'curve.svg')
  assert (tmp_path / 'curve.svg').read_text().count('</svg>') == 1


def test_mistakes_are_named(workdir, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r'curve.jpg.*\.png or \.svg'):
    pictures.learning_curve({'a': [workdir]}, tmp_path / 'curve.jpg')
  with pytest.raises(UserError, match='no run to draw'):
    pictures.learning_curve({'a': []}, tmp_path / 'curve.png')
  with pytest.raises(UserError, match='no readable config.json'):
    pictures.learning_curve({'a': [tmp_path]}, tmp_path / 'curve.png')
  (tmp_path / 'config.json').write_text(json.dumps(json.loads((workdir / 'config.json').read_text())))
  with pytest.raises(UserError, match='no finished step'):
    pictures.read_run(tmp_path)
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(UserError, match=r'earl_jax\[plot\]'):
    pictures.learning_curve({'a': [workdir]}, tmp_path / 'curve.png')
