"""The checkpoint that ships with the package: it belongs to this code, is small, and knows what it was taught."""

import json
import pathlib

import earl_jax
from earl_jax.base_model import build
from earl_jax.model import hf
from earl_jax.model import tokenizer as tokenizer_lib

PACKAGE = pathlib.Path(earl_jax.__file__).parent
SHIPPED = PACKAGE / 'base_model' / 'checkpoint'


def test_its_tokenizer_is_the_one_that_is_built(tmp_path):
  build.build_tokenizer(tmp_path)
  for name in build.TOKENIZER_FILES:
    assert json.loads((SHIPPED / name).read_text()) == json.loads((tmp_path / name).read_text()), name


def test_the_package_is_small():
  files = [path for path in PACKAGE.rglob('*') if path.is_file() and '__pycache__' not in path.parts]
  assert SHIPPED / 'model.safetensors' in files
  assert sum(path.stat().st_size for path in files) <= 8 * 2**20


def test_it_knows_orders():
  config, documents = hf.read_config(SHIPPED), build.Documents(tokenizer_lib.load_tokenizer(SHIPPED))
  scores = build.evaluate(config, hf.load_params(SHIPPED, config), documents, count=48)
  assert scores['order'] >= 0.9, scores
