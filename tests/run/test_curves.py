"""Learning curves: what they mean, and which runs they can be drawn of."""

import json
import sys

import numpy as np
import pytest

from earl_jax import train
from earl_jax.config import UserError
from earl_jax.run import cli, curves, figures
from earl_jax.view import __main__ as view
from tests.run import tiny


def make_run(rollouts=(10, 20, 30), **metrics):
  lines = [{'step': i} | {name: values[i] for name, values in metrics.items()} for i in range(len(rollouts))]
  return curves.RunMetrics(lines, np.array(rollouts))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = tiny.parsed(tiny.write_model(tmp_path_factory.mktemp('model')), steps=2)
  folder = tmp_path_factory.mktemp('run')
  train.train(config, folder)
  return folder


@pytest.mark.parametrize('name, text', [
    ('metrics.jsonl', b'{"step": 0}\n\xff\n'), ('metrics.jsonl', b'{"loss": 1.0}\n'), ('metrics.jsonl', b'[1]\n'),
    ('evaluation.json', b'{"sort": {"2":'), ('evaluation.json', b'[1]'),
])
def test_damaged_files(workdir, tmp_path, name, text):
  (tmp_path / 'config.json').write_bytes((workdir / 'config.json').read_bytes())
  (tmp_path / name).write_bytes(text)
  with pytest.raises(UserError, match=f'{name}: damaged; '):
    (curves.read_run if name == 'metrics.jsonl' else curves.read_evaluation)(tmp_path)


def test_band_is_mean_and_range():
  figure, axes = figures.new_figure(figsize=(2, 2))
  # the second run ended early and keeps its 0.5; nobody measured at 20
  runs = [make_run(m=[0.0, None, 1.0]), make_run((10,), m=[0.5])]
  curves.draw_band(axes, runs, 'm', color='#000000')
  curves.draw_band(axes, runs, 'm', color='#000000', marker='o')
  curves.draw_band(axes, runs, 'never measured', color='#000000')
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
  run = curves.read_run(tmp_path)
  assert run.rollouts.tolist() == [16, 32]
  assert np.isnan(run.values('eval/sort2/exact_match')).tolist() == [True, False]


def test_several_labels(workdir, tmp_path):
  curves.learning_curve({'a': [workdir, workdir], 'b': [workdir]}, tmp_path / 'curve.svg')
  assert (tmp_path / 'curve.svg').read_text().count('</svg>') == 1


def test_mistakes_are_named(workdir, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r'curve.jpg.*\.png or \.svg'):
    curves.learning_curve({'a': [workdir]}, tmp_path / 'curve.jpg')
  with pytest.raises(UserError, match='no run to draw'):
    curves.learning_curve({'a': []}, tmp_path / 'curve.png')
  with pytest.raises(UserError, match='no readable config.json'):
    curves.learning_curve({'a': [tmp_path]}, tmp_path / 'curve.png')
  (tmp_path / 'config.json').write_text(json.dumps(json.loads((workdir / 'config.json').read_text())))
  with pytest.raises(UserError, match='no finished step'):
    curves.read_run(tmp_path)
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(UserError, match=r'earl_jax\[plot\]'):
    curves.learning_curve({'a': [workdir]}, tmp_path / 'curve.png')


def test_older_runs_are_read(workdir, tmp_path):
  (tmp_path / 'config.json').write_text((workdir / 'config.json').read_text())
  line = {'step': 0, 'exact': 0.5, 'exact/sort2': 0.25, 'eval/sort2/exact': 1.0, 'exactly': 2.0, 'inexact/x': 3.0}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  assert curves.read_run(tmp_path).lines == [{
      'step': 0, 'exact_match': 0.5, 'exact_match/sort2': 0.25, 'eval/sort2/exact_match': 1.0, 'exactly': 2.0,
      'inexact/x': 3.0,
  }]


def test_command(workdir, capsys):
  """`python -m earl_jax.view --pictures --algorithm`."""
  arguments = ['view', f'--workdir={workdir}', '--pictures', '--algorithm=sort2']
  assert cli.start(view.main, view.define_flags, arguments) == 0
  out, err = capsys.readouterr()
  names = ('view.html', 'pictures/learning_curve.png', 'pictures/trajectory.png')
  assert out.split() == [str(workdir / name) for name in names] and not err
  assert all(open(workdir / name, 'rb').read(4) == b'\x89PNG' for name in names[1:])
  text = (workdir / 'view.html').read_text()
  assert '"task":"sort2","claim":"certified"' in text and '"problems":4' in text
