"""The site is built strictly: a link or an anchor that leads nowhere fails, as does a page outside its navigation."""

import dataclasses
import importlib.util
import re

import pytest

from earl_jax import config
from tests.run import tiny

CONFIGS = [config.Config, config.Stage, *(
    field.type for field in dataclasses.fields(config.Config) if dataclasses.is_dataclass(field.type)
)]


@pytest.fixture(scope='module')
def hooks():
  spec = importlib.util.spec_from_file_location('hooks', tiny.ROOT / 'docs' / 'hooks.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('cls', CONFIGS, ids=lambda cls: cls.__name__)
def test_every_field_of_the_config_is_described(hooks, cls):
  described = hooks.descriptions(cls)
  groups = {field.name for field in dataclasses.fields(cls) if dataclasses.is_dataclass(field.type)}
  assert set(described) == {field.name for field in dataclasses.fields(cls)} - groups
  assert all(described.values())


def test_fields_described_together_are_told_apart(hooks):
  described = hooks.descriptions(config.AlgorithmConfig)
  assert described['clip_low'] == described['clip_high'] == (
      "the surrogate's ratio stays between 1 - clip_low and 1 + clip_high."
  )
  assert '| `clip_low` | `0.2` |' in hooks.config_page()


def test_every_page_is_in_the_navigation(hooks):
  listed = set(re.findall(r'- (\S+\.md)$', (tiny.ROOT / 'mkdocs.yml').read_text('utf-8'), re.MULTILINE))
  made = {*hooks.PAGES, 'config.md', 'command_line.md', *hooks.api_pages()}
  assert listed == made | {path.name for path in (tiny.ROOT / 'docs').glob('*.md')}


def test_build(tmp_path):
  pytest.importorskip('mkdocstrings')
  from mkdocs.commands import build
  from mkdocs.config import load_config

  settings = load_config(str(tiny.ROOT / 'mkdocs.yml'), site_dir=str(tmp_path))
  assert settings.strict
  build.build(settings)
  assert 'id="earl_jax.run.trackers.Tracker"' in (tmp_path / 'api' / 'run' / 'index.html').read_text('utf-8')
  assert '--config.optimizer.FIELD=VALUE' in (tmp_path / 'command_line' / 'index.html').read_text('utf-8')
  start = (tmp_path / 'index.html').read_text('utf-8')
  assert '/blob/HEAD/examples/lookup.py"' in start and 'href="environments/"' in start
