"""Whatever a config says, a run begins or one line says what to fix, and no folder is claimed before that is known."""

import dataclasses
import functools
import string

import hypothesis
from hypothesis import strategies as st
import pytest

from earl_jax import config as config_lib
from earl_jax import train
from earl_jax.config import UserError
from earl_jax.model import hub
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import cli, preparation
from tests.run import tiny

FEW, MANY = 25, 1000
NUMBERS = st.one_of(
    st.integers(-3, 10), st.integers(), st.floats(), st.sampled_from([10**30, -(10**400), 2**31, 2**32, 2**63, 1e300]),
)
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from([
    'sort', 'order', 'count', 'gsm8k', 'Sort', 'os', 'os:path', ':', '..', 'sort:', 'earl_jax.tasks.sorting',
    'embedded', 'gs://bucket/run', '~', '~nobody/x', '/', 'a/b', 'x' * 5000, '\0', '\ud800', 'expanded', 'bfloat16',
    'cudnn', 'nan',
]))
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(TEXTS, inner, max_size=3),
        st.tuples(TEXTS, st.dictionaries(st.sampled_from(['n', 'digits', 'path', 'direction', 'x']), inner), inner),
    ), max_leaves=8,
)
GROUPS = {'': config_lib.Config} | {
    field.name: field.type for field in dataclasses.fields(config_lib.Config) if dataclasses.is_dataclass(field.type)
}
FIELDS = [f'{group}.{name}'.lstrip('.') for group, kind in GROUPS.items() for name in kind.__dataclass_fields__]


class BegunError(Exception):
  """Set-up has come to the weights: the config was found good."""


@pytest.fixture(autouse=True)
def no_weights_and_no_hub(monkeypatch):
  def begin(*_, **__):
    raise BegunError

  def offline(*_, **__):
    raise OSError('offline')

  monkeypatch.setattr(preparation, 'first_params', begin)
  monkeypatch.setattr(hub.huggingface_hub, 'snapshot_download', offline)
  monkeypatch.setattr(tokenizer_lib, 'load_tokenizer', functools.cache(tokenizer_lib.load_tokenizer))


def changed(values):
  """A config of four rollouts, with these fields changed: dotted name -> value."""
  plain = config_lib.default_config().to_dict()
  plain['curriculum'] = ({'tasks': (('sort', {'n': 2}, 1.0),)},)
  plain['rollout'].update(prompts=2, group=2, chunk=2)
  plain['algorithm'].update(mini_batches=1, micro_batch=2)
  plain['evaluation_prompts'] = 4
  for name, value in values.items():
    group, _, field = name.rpartition('.')
    node = plain.setdefault(group, {}) if group else plain
    if isinstance(node, dict):
      node[field] = value
  return plain


def examples(count):
  return hypothesis.settings(
      max_examples=count, suppress_health_check=list(hypothesis.HealthCheck), database=None, derandomize=True
  )


def check_dicts(tmp_path, count):
  """Of a dict, as a workdir may hold it."""
  fields = st.one_of(st.sampled_from(FIELDS), TEXTS)
  stages = st.lists(st.fixed_dictionaries({}, optional={
      'tasks': st.one_of(ANYTHING, st.lists(ANYTHING, max_size=2).map(tuple), st.tuples(ANYTHING)), 'until': NUMBERS,
      'steps': NUMBERS, 'imitate': st.one_of(st.booleans(), NUMBERS),
  }), max_size=2)
  one = st.one_of(
      st.tuples(fields, ANYTHING), st.tuples(st.sampled_from(FIELDS), NUMBERS), st.tuples(st.just('curriculum'), stages)
  )

  @examples(count)
  @hypothesis.given(st.lists(one, min_size=1, max_size=3).map(dict))
  def check(values):
    workdir = tmp_path / 'run'
    try:
      train.train(config_lib.parse(changed(values)), workdir)
    except UserError as error:
      assert '\n' not in str(error) and len(str(error)) < 2000
    except BegunError:
      pass
    assert not workdir.exists()

  check()


def check_arguments(capsys, count):
  """Of arguments, which are texts."""
  texts = TEXTS.filter(str.isprintable)  # an argument has no zeros in it
  values = st.one_of(texts, NUMBERS.map(_text), ANYTHING.map(_text), st.text(string.printable, max_size=20))
  flags = st.one_of(st.sampled_from(FIELDS), st.sampled_from(list(GROUPS)[1:]), texts)
  found = []

  @examples(count)
  @hypothesis.given(st.lists(st.tuples(flags, values), min_size=1, max_size=3))
  def check(given):
    arguments = [f'--config.{flag}={value}' for flag, value in given]
    status = start([f'--config={tiny.ROOT}/configs/sort2.py', *arguments], found)
    errors = capsys.readouterr().err
    assert status == 0 or (status == 2 and errors.startswith('error: ') and errors.count('\n') == 1), errors

  check()


def check_files(tmp_path, capsys, count):
  """Of config files: a good one, with something taken out of it and something put in."""
  source = (tiny.ROOT / 'configs' / 'sort2.py').read_text().partition('from earl_jax')
  source = ''.join(source[1:])
  place = st.integers(0, len(source))
  found = []

  @examples(count)
  @hypothesis.given(place, st.integers(0, 30), st.text(string.punctuation + 'ab01 \n\0é', max_size=6))
  def check(at, gap, more):
    text = source[:at] + more + source[at + gap :]
    path = tmp_path / 'hostile.py'
    path.write_text(text)
    status = start([f'--config={path}'], found)
    errors = capsys.readouterr().err
    assert status == 0 or (status == 2 and errors.startswith('error: ') and errors.count('\n') == 1), (text, errors)

  check()


def _text(value):
  try:
    return repr(value)
  except ValueError:  # a number of too many digits
    return '9' * 5000


def start(arguments, found):
  def main(values):
    found.append(cli.read_config(values))

  return cli.start(main, cli.define_config, ['program', *arguments])


def test_dicts(tmp_path):
  check_dicts(tmp_path, FEW)


def test_arguments(capsys):
  check_arguments(capsys, FEW)


def test_files(tmp_path, capsys):
  check_files(tmp_path, capsys, FEW)


@pytest.mark.slow
def test_a_thousand(tmp_path, capsys):
  check_dicts(tmp_path, MANY)
  check_arguments(capsys, MANY)
  check_files(tmp_path, capsys, MANY)
