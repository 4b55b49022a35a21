"""Adapters: nothing at first, the same merged as beside the kernels, and what they are against plain NumPy."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.acting import policy
from earl_jax.config import LoraConfig, UserError
from earl_jax.model import lora, peft, transformer
from tests import core_fixtures as core

CONFIG = LoraConfig(rank=3, alpha=7.0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(500, size=(2, 9)))


def adapters(seed=0, config=CONFIG):
  """Adapters that do something."""
  new = lora.init_adapters(lora.adapter_shapes(core.params(1)['model']['layers'], config), config, seed)
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), new)


def hidden(model, tree=None, adapters=None):
  tree = core.params(1)['model'] if tree is None else tree
  return transformer.apply(model, tree, TOKENS, jnp.array([0, 3]), adapters=adapters)[0]


MODEL = dataclasses.replace(core.MODEL, adapter_scale=lora.scale(CONFIG))


def test_new_adapters_change_nothing():
  new = lora.init_adapters(lora.adapter_shapes(core.params(1)['model']['layers'], CONFIG), CONFIG, 0)
  chex.assert_trees_all_equal(hidden(MODEL, adapters=new), hidden(core.MODEL))
  assert all(np.any(adapter['a']) for adapter in new.values())


@pytest.mark.parametrize('names', [('q',), ('o', 'down'), LoraConfig.projections])
def test_merged_is_unmerged(names):
  chosen = {name: adapters()[name] for name in names}
  merged = policy.merged(core.params(1) | {'adapters': chosen}, MODEL)['model']
  got = hidden(MODEL, adapters=chosen)
  chex.assert_trees_all_close(got, hidden(core.MODEL, merged), atol=1e-5)
  assert np.abs(got - hidden(core.MODEL)).max() > 1e-2


def test_in_bfloat16_the_trainer_multiplies_by_what_the_decode_loop_has_merged():
  """Else a change that rounding takes from the one would be learned from in the other."""
  model = dataclasses.replace(MODEL, dtype='bfloat16')
  frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), core.params(1)['model'])
  small = jax.tree.map(lambda x: 0.05 * x, adapters())
  merge = functools.partial(lora.merged, scale=model.adapter_scale, dtype='bfloat16')
  merged = frozen | {'layers': jax.vmap(merge)(frozen['layers'], small)}
  chex.assert_trees_all_equal(hidden(model, frozen, small), hidden(model, merged))


@pytest.mark.parametrize('name', ['q', 'o', 'down'])
def test_gradients_are_those_of_the_merged_product(name):
  kernel = core.params(1)['model']['layers'][name]['kernel'][0]
  adapter = jax.tree.map(lambda x: x[0], adapters()[name])
  inputs = kernel.shape[: adapter['a'].ndim - 1]
  x, gradient = (
      jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, *shape)), jnp.float32)
      for shape in (inputs, kernel.shape[len(inputs):])
  )

  def plain(x, kernel, adapter, scale):
    return jnp.tensordot(x, kernel + scale * jnp.tensordot(adapter['a'], adapter['b'], axes=1), len(inputs))

  found, expected = (
      jax.vjp(functools.partial(f, scale=2.5), x, kernel, adapter)[1](gradient) for f in (lora.through, plain)
  )
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_kernel_gets_scale_times_a_b():
  for name, adapter in adapters().items():
    kernel = np.asarray(core.params(1)['model']['layers'][name]['kernel'])
    merged = policy.merged(core.params(1) | {'adapters': {name: adapter}}, MODEL)['model']
    for layer, (a, b) in enumerate(zip(np.asarray(adapter['a']), np.asarray(adapter['b']))):
      change = 7 / 3 * a.reshape(-1, 3) @ b.reshape(3, -1)
      chex.assert_trees_all_close(
          merged['layers'][name]['kernel'][layer], kernel[layer] + change.reshape(kernel[layer].shape), atol=1e-6
      )


def test_split_and_merged_leave_policies_without_adapters_alone():
  params = core.params(1)
  assert policy.split(params) == (params, {})
  assert policy.merged(params, MODEL) is params
  trained, frozen = policy.split(params | {'adapters': {}})
  assert set(trained) == {'adapters', 'expanded_head'} and set(frozen) == {'model'}


def test_adapters_on_disk_and_back(tmp_path):
  peft.write_adapters(tmp_path, adapters(), CONFIG, 'base')
  chex.assert_trees_all_equal(peft.read_adapters(tmp_path, adapters(1), CONFIG), adapters())


@pytest.mark.parametrize('change, told', [
    ({'r': 4}, 'r=4'), ({'lora_alpha': 1}, 'lora_alpha=1'), ({'use_rslora': True}, 'use_rslora=True'),
    ({'peft_type': 'IA3'}, "peft_type='IA3'"), ({'rank_pattern': {'q_proj': 2}}, 'rank_pattern'),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights='pissa', whose adapters belong beside a changed model"),
])
def test_adapters_of_another_kind_are_refused(tmp_path, change, told):
  peft.write_adapters(tmp_path, adapters(), CONFIG, 'base')
  path = tmp_path / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(UserError, match=told):
    peft.read_adapters(tmp_path, adapters(), CONFIG)


def test_adapters_of_another_model_are_refused(tmp_path):
  peft.write_adapters(tmp_path, adapters(), CONFIG, 'base')
  wider = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], x.shape[-1] + 1)), adapters())
  with pytest.raises(UserError, match='layers.0.mlp.down_proj.lora_A.weight.*shape'):
    peft.read_adapters(tmp_path, wider, CONFIG)
  deeper = jax.tree.map(lambda x: jnp.concatenate([x, x]), adapters())
  with pytest.raises(UserError, match='layers.2.mlp.down_proj.lora_A.weight.*missing'):
    peft.read_adapters(tmp_path, deeper, CONFIG)
  with pytest.raises(UserError, match='no place'):
    peft.read_adapters(tmp_path, {'q': adapters()['q']}, CONFIG)
  (tmp_path / 'adapter_model.safetensors').write_bytes(b'no')
  with pytest.raises(UserError, match='no adapters can be read'):
    peft.read_adapters(tmp_path, adapters(), CONFIG)
