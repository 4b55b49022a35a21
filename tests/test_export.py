"""A trained policy leaves for `transformers` and comes back, bit for bit or with a reason why not."""

import dataclasses
import json
import re

import chex
import jax
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
import transformers

from earl_jax import config as config_lib
from earl_jax import export
from earl_jax.config import UserError
from earl_jax.devices import sharding
from earl_jax.learning import update
from earl_jax.model import hf, transformer
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import checkpoint, cli, expanded_head
from earl_jax.run.preparation import set_up
from earl_jax.run.workdir import claim_workdir
from tests.run import tiny

FAMILIES = {
    'qwen2': {},
    'qwen3': dict(attention_bias='', qk_norm=True),
    'llama': dict(attention_bias='', rope_scaling=transformer.RopeScaling(8.0, 1.0, 4.0, 32)),
}


def livelier(params, seed=5):
  keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))
  leaves, tree = jax.tree.flatten(params)
  return jax.tree.unflatten(tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def write_model(folder, **changes):
  tiny.write_model(folder)
  config = dataclasses.replace(hf.read_config(folder), **changes)
  hf.save_checkpoint(folder, config, transformer.init_params(config, jax.random.key(0)), eos_token_id=2)
  return folder


def trained_run(folder, **changes):
  """(workdir with a checkpoint of step 3, config, experiment, parameters that are not those of the base model)."""
  config = tiny.parsed(write_model(folder / 'base', **changes))
  experiment, params = set_up(config)
  params = livelier(params)
  workdir = folder / 'run'
  claim_workdir(workdir, config, experiment.environment_versions)
  state = update.init_state(params, update.make_optimizer(config))
  state = jax.device_put(state, sharding.tree_shardings(experiment.mesh, state))
  with checkpoint.Checkpointer(workdir) as checkpointer:
    checkpointer.save(3, state, {})
  return workdir, config, experiment, jax.tree.map(np.asarray, params)


def run_export(workdir, out, *arguments):
  return cli.start(export.main, export.define_flags, ['export', f'--workdir={workdir}', f'--out={out}', *arguments])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return trained_run(tmp_path_factory.mktemp('trained'))


@pytest.fixture
def exported(run, tmp_path):
  _, _, experiment, params = run
  export.export(experiment, params, tmp_path / 'out')
  return tmp_path / 'out'


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('tied', [True, False])
def test_export_and_back(family, tied, tmp_path, capsys):
  torch = pytest.importorskip('torch')
  workdir, config, experiment, params = trained_run(tmp_path, tie_word_embeddings=tied, **FAMILIES[family])
  out = tmp_path / 'deep' / 'out'
  assert run_export(workdir, out, '--max_gigabytes=0.00003') == 0
  first, *note = capsys.readouterr().out.splitlines()
  assert first == f'{out}: {workdir} after 3 steps'
  if family == 'qwen2':  # of which transformers makes Qwen's own tokenizer, whatever the files say
    assert re.search('Qwen2Tokenizer .* load the tokenizer with PreTrainedTokenizerFast', note[0])
    same_tokenizer(experiment.tokenizer, transformers.PreTrainedTokenizerFast.from_pretrained(out))
  else:
    assert not note
    same_tokenizer(experiment.tokenizer, transformers.AutoTokenizer.from_pretrained(out))
  same_tokenizer(experiment.tokenizer, tokenizer_lib.load_tokenizer(out))
  assert len(list(out.glob('model-*.safetensors'))) > 1

  theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
  assert theirs.config.model_type == family and theirs.config.eos_token_id == experiment.tokenizer.eos_token_id
  tokens = np.random.default_rng(0).integers(experiment.model.vocab_size, size=(2, 40))
  hidden, _ = transformer.apply(experiment.model, params['model'], tokens, np.zeros(2, np.int32))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens)).logits.numpy()
  ours = hidden @ transformer.output_embedding(params['model']).T
  chex.assert_trees_all_close(np.asarray(ours), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)

  again, back = set_up(dataclasses.replace(config, model=str(out)))
  assert again.model == experiment.model
  chex.assert_trees_all_equal(jax.tree.map(np.asarray, back), params)
  sharded = jax.tree.map(lambda x, s: x.sharding == s, back, sharding.tree_shardings(again.mesh, back))
  assert jax.tree.all(sharded)


def same_tokenizer(one, other):
  text = 'Sort A, B and C: 12 + 3 = 15\n  naïve <|im_end|>'
  assert one.encode(text) == other.encode(text)
  assert (one.eos_token, one.pad_token) == (other.eos_token, other.pad_token)
  assert len({tuple(tokenizer_lib.chat_prompt(x, 'Do.', 'What?', 'Well')) for x in (one, other)}) == 1


def test_tokenizer_of_qwen(run, tmp_path, qwen_tokenizer_dir):
  tokenizer = tokenizer_lib.load_tokenizer(qwen_tokenizer_dir)
  export.export(dataclasses.replace(run[2], tokenizer=tokenizer), run[3], tmp_path / 'out')
  same_tokenizer(tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / 'out'))
  same_tokenizer(tokenizer, tokenizer_lib.load_tokenizer(tmp_path / 'out'))


def test_manifest(run, exported):
  experiment = run[2]
  manifest = json.loads((exported / 'action_space.json').read_text())
  tokenizer, vocab = experiment.tokenizer, len(experiment.tokenizer)
  assert manifest['interface'] == 'expanded' and manifest['vocab_size'] == vocab
  names = [environment['name'] for environment in manifest['environments']]
  assert {e['name']: e['version'] for e in manifest['environments']} == experiment.environment_versions
  actions = manifest['actions']
  assert [action['id'] for action in actions] == list(range(vocab, experiment.interface.space.size))
  assert [action['name'] for action in actions[: len(names)]] == names
  kinds = [action['kind'] for action in actions]
  assert kinds == ['routing'] * len(names) + ['environment'] * (len(actions) - len(names))
  for action in actions:
    assert tokenizer.decode(action['description_tokens']) == action['description']
  first = next(action for action in actions if action['description'] == ' A')
  assert first['name'] == 'A' and first['environments'] == ['compare', 'swap'] and first['kind'] == 'environment'
  head = load_file(exported / 'expanded_head.safetensors')['expanded_head']
  chex.assert_trees_all_equal(head, run[3]['expanded_head'])


def refused(run, folder, *words, **changes):
  config = dataclasses.replace(run[1], model=str(folder), **changes)
  with pytest.raises(UserError, match='.*'.join(map(re.escape, words))) as caught:
    set_up(config)
  assert '\n' not in str(caught.value)


def change(path, edit):
  value = json.loads(path.read_text())
  edit(value)
  path.write_text(json.dumps(value))


@pytest.mark.parametrize('edit, words', [
    (lambda m: m.update(vocab_size=7), ['vocab_size=7', 'this run has 5']),
    (lambda m: m['environments'][1].update(version=99), ['environments.1.version=99', 'this run has']),
    (lambda m: m['actions'][3].update(description=' X'), ["actions.3.description=' X'", 'this run has']),
    (lambda m: m['actions'].pop(), ["='nothing', this run has"]),
    (lambda m: m['actions'].append({'id': 1000}), ["this run has 'nothing'"]),
    (lambda m: m['actions'][2]['description_tokens'].append(3), ['description_tokens.1=3', "this run has 'nothing'"]),
])
def test_another_action_space(run, exported, edit, words):
  change(exported / 'action_space.json', edit)
  refused(run, exported, 'action_space.json has', *words, 'or remove action_space.json and expanded_head.safetensors')


def test_another_interface_and_other_tasks(run, exported):
  refused(run, exported, "has interface='expanded', this run has 'tagged'", interface='tagged')
  stage = config_lib.Stage(tasks=(('order', {'n': 3}, 1.0),))
  roomy = dataclasses.replace(run[1].rollout, prompt_length=64)
  refused(run, exported, 'action_space.json has environments', curriculum=(stage,), rollout=roomy)


def test_rows_begin_anew_where_manifest_and_head_were_removed(run, exported):
  for name in ('action_space.json', 'expanded_head.safetensors'):
    (exported / name).unlink()
  experiment, params = set_up(dataclasses.replace(run[1], model=str(exported)))
  rows = transformer.output_embedding(params['model'])[experiment.interface.space.init_tokens]
  chex.assert_trees_all_equal(params['expanded_head'], rows)


def test_damaged_head_or_manifest(run, exported):
  head, manifest = exported / 'expanded_head.safetensors', exported / 'action_space.json'
  whole, text = head.read_bytes(), manifest.read_text()
  head.write_bytes(whole[:-1])
  refused(run, exported, 'expanded_head.safetensors cannot be read')
  save_file({'expanded_head': np.zeros((2, 3), np.float32)}, head)
  refused(run, exported, 'expanded_head.safetensors is float32[2, 3], expected float32[')
  for names in (['expanded_head', 'other'], ['other']):
    save_file(dict.fromkeys(names, np.zeros((2, 3), np.float32)), head)
    refused(run, exported, 'expanded_head.safetensors cannot be read')
  head.unlink()
  refused(run, exported, 'expanded_head.safetensors cannot be read')
  head.write_bytes(whole)
  manifest.write_text(text[:-5])
  refused(run, exported, 'action_space.json cannot be read')
  manifest.unlink()
  refused(run, exported, 'action_space.json is missing')


def test_tagged_policies_have_no_head(run, tmp_path):
  config = dataclasses.replace(run[1], interface='tagged')
  experiment, params = set_up(config)
  export.export(experiment, params, tmp_path / 'out')
  assert not (tmp_path / 'out' / 'expanded_head.safetensors').exists()
  assert json.loads((tmp_path / 'out' / 'action_space.json').read_text())['interface'] == 'tagged'
  again = dataclasses.replace(config, model=str(tmp_path / 'out'))
  chex.assert_trees_all_equal(set_up(again)[1], params)
  refused(run, tmp_path / 'out', "has interface='tagged', this run has 'expanded'")
  save_file({'expanded_head': np.zeros((2, 3), np.float32)}, tmp_path / 'out' / 'expanded_head.safetensors')
  refused(run, tmp_path / 'out', 'this run has no use for expanded_head.safetensors', interface='tagged')


def test_nothing_is_overwritten(run, tmp_path, capsys):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'precious').write_text('')
  assert run_export(run[0], tmp_path / 'out') == 2
  says = f'error: --out={tmp_path / "out"}: already exists; choose a new folder\n'
  assert capsys.readouterr().err == says
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['precious']
  assert run_export(tmp_path, tmp_path / 'new') == 2 and not (tmp_path / 'new').exists()


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
  def fail(*_):
    raise OSError('disk full')

  with monkeypatch.context() as patch:
    patch.setattr(expanded_head, 'write', fail)
    with pytest.raises(OSError, match='disk full'):
      export.export(run[2], run[3], tmp_path / 'out')
  assert not list(tmp_path.iterdir())

  def full(*_, **__):
    raise SafetensorError('I/O error: No space left on device')

  monkeypatch.setattr(hf, 'save_file', full)
  with pytest.raises(UserError, match='out: cannot be written .I/O error: No space left on device.; make room'):
    export.export(run[2], run[3], tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_a_vocabulary_padded_beyond_the_tokenizer(tmp_path):
  tokenizer_rows = hf.read_config(tiny.write_model(tmp_path / 'plain')).vocab_size
  experiment, params = set_up(tiny.parsed(write_model(tmp_path / 'padded', vocab_size=tokenizer_rows + 3)))
  assert params['model']['embedding'].shape[0] == tokenizer_rows + 3
  assert experiment.interface.space.vocab_size == tokenizer_rows
  folder = write_model(tmp_path / 'short', vocab_size=tokenizer_rows - 1)
  with pytest.raises(UserError, match=f'vocab_size={tokenizer_rows - 1} in config.json, but the tokenizer has'):
    set_up(tiny.parsed(folder))


def test_a_vocabulary_with_gaps(tmp_path):
  count = len(tokenizer_lib.load_tokenizer(tiny.write_model(tmp_path / 'plain')))
  for rows in (count + 8, count + 7):
    folder = write_model(tmp_path / str(rows), vocab_size=rows)
    change(folder / 'tokenizer.json', lambda whole: whole['model']['vocab'].update(zzz=count + 7))
    if rows > count + 7:
      assert set_up(tiny.parsed(folder))[0].interface.space.vocab_size == count + 8
    else:
      with pytest.raises(UserError, match=f'but the tokenizer has ids up to {count + 7}; use the tokenizer'):
        set_up(tiny.parsed(folder))


def test_several_end_tokens_are_kept(run, tmp_path):
  _, config, experiment, params = run
  assert experiment.end_tokens == (2,)
  several = dataclasses.replace(experiment, end_tokens=(2, 0, 1))
  export.export(several, params, tmp_path / 'out')
  pytest.importorskip('torch')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == [2, 0, 1]
  again = set_up(dataclasses.replace(config, model=str(tmp_path / 'out')))[0]
  assert again.end_tokens == again.decoding().end_tokens == (2, 0, 1)


def test_a_model_that_is_nowhere():
  with pytest.raises(UserError, match="model '/nowhere/at/all': no such folder or GGUF file, nor the id of a model"):
    set_up(tiny.parsed('/nowhere/at/all'))
