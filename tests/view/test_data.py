"""What the viewer reads of a run, and what it makes of a page."""

import html.parser
import json

import pytest

from earl_jax.run import cli
from earl_jax.run.episodes import visible
from earl_jax.view import __main__ as view
from earl_jax.view import data as data_lib
from earl_jax.view.page import page
from tests.view import hostile


def start(*arguments):
  return cli.start(view.main, view.define_flags, ['view', *arguments])


def test_command(tmp_path, capsys):
  workdir = hostile.write_run(tmp_path, [hostile.line('hello', step) for step in (0, 5)])
  assert start(f'--workdir={workdir}') == 0
  assert capsys.readouterr() == (f'{workdir / "view.html"}\n', '')
  data = data_lib.read(workdir)
  assert [line['step'] for line in data['episodes']] == [0, 5] and data['environments'] == ['compare']
  assert [chart['title'] for chart in data['charts']] == ['Exact match', 'Comparisons', 'Reward']
  assert data['charts'][0]['series'][0]['points'][3] == [3, 0.3]


def test_mistakes_are_named(tmp_path, capsys):
  assert start(f'--workdir={tmp_path}') == 2
  assert 'no readable config.json' in capsys.readouterr().err
  workdir = hostile.write_run(tmp_path, [])
  (workdir / 'file').write_text('')
  assert start(f'--workdir={workdir}', f'--out={workdir}/file/page.html') == 2
  error, = capsys.readouterr().err.splitlines()
  assert '--out=' in error and 'cannot be written' in error
  (workdir / 'metrics.jsonl').write_text('{"step": 0')
  assert start(f'--workdir={workdir}') == 2
  assert 'no finished step in it' in capsys.readouterr().err


@pytest.mark.parametrize('older', [False, True])
def test_a_run_without_samples(tmp_path, capsys, older):
  """Its curves are there, and a line says why there is no more."""
  workdir = hostile.write_run(tmp_path, [])
  if older:
    (workdir / 'samples' / 'step_000000.txt').write_text('===== sample 0 =====\n')
  assert start(f'--workdir={workdir}') == 0
  note, = capsys.readouterr().err.splitlines()
  assert ('older version' if older else 'no samples yet') in note
  assert data_lib.read(workdir)['charts']


def test_what_is_damaged_is_left_out(tmp_path):
  good = json.dumps(hostile.line('good'))
  bad = [
      good[:-30], 'null', '[]', '{}', '\xff', '[' * 100_000, good.replace('0.5', 'NaN'),
      good.replace('"fork": 1', '"fork": "1"'), good.replace('["good", 0.36, ""]', '["good", 0.36]'),
      good.replace('["good", 0.36, ""]', '5'),
      good.replace('"text": "good"', '"text": null'), good.replace('"decisions"', '"decided"'),
  ]
  workdir = hostile.write_run(tmp_path, [])
  (workdir / 'samples' / 'step_000000.jsonl').write_bytes('\n'.join([good, *bad, good]).encode('latin-1'))
  data = data_lib.read(workdir)
  assert len(data['episodes']) == 2 and f'{len(bad)} lines are damaged' in data['notes'][0]


def test_large_runs_are_thinned_out(tmp_path, monkeypatch):
  monkeypatch.setattr(data_lib, 'MOST_BYTES', 6_000)
  workdir = hostile.write_run(tmp_path, [hostile.line('x', step) for step in range(20)])
  data = data_lib.read(workdir)
  steps = [line['step'] for line in data['episodes']]
  assert steps == list(range(19, -1, -(19 - steps[-2])))[::-1] and 2 <= len(steps) < 10
  assert 'too large' in data['notes'][0]
  assert sum(len(data_lib.encode(line)) for line in data['episodes']) <= 6_000


def test_a_page_has_no_element_but_its_own(tmp_path):
  workdir = hostile.write_run(tmp_path, [hostile.line(text) for text in hostile.texts(500)])
  found, data = [], data_lib.read(workdir)
  text = page(data | {'name': '</title><script>{{style}}'})

  class Parser(html.parser.HTMLParser):
    def handle_starttag(self, tag, attributes):
      found.append(tag)
      for name, value in attributes:
        assert not name.startswith('on') and '//' not in (value or '')

  Parser().feed(text)
  assert found.count('script') == 2 and found.count('style') == 1
  assert not {'iframe', 'img', 'object', 'base'} & set(found)
  assert text.isascii() or set(text) - {*map(chr, range(128))} <= set('↵␣�✓✗×·–−…→←↑↓')
  inside = text.split('id="data">')[1].split('</script>')[0]
  assert json.loads(inside)['episodes'] == data['episodes'] and not set('<>&') & set(inside)


def test_nothing_visible_moves_a_terminal():
  for text in hostile.texts(5_000):
    shown = visible(text)
    assert len(shown) == len(text) and all(c == '\n' or c.isprintable() for c in shown)
    assert [a for a, b in zip(text, shown) if a != b and (a == '\n' or a.isprintable())] == []
