"""Writes a trained policy as a checkpoint that `transformers` loads.

  python -m earl_jax.export --workdir=runs/sort4 --out=exported

The folder holds the model and its tokenizer for AutoModelForCausalLM and AutoTokenizer, the rows of the expanded
actions (expanded_head.safetensors) and what each of these actions is (action_space.json). As config.model of another
run with the same environments and interface it starts where this one ended. The newest checkpoint is used.

Adapters are added to the model they were trained beside; --adapters writes them alone, as the PEFT library reads them
and as config.lora.adapters of another run.

For some families `transformers` insists on a tokenizer class of its own, which need not read the files as they were
written: of Qwen2 with any tokenizer but Qwen's, such as the embedded model's. PreTrainedTokenizerFast is right then, as
the program says.
"""

import pathlib
import sys
from typing import Annotated

from absl import flags
from transformers import AutoTokenizer

from earl_jax.acting import policy
from earl_jax.config import fields, Range, UserError
from earl_jax.config.paths import local_path
from earl_jax.model import hf, peft
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import cli, expanded_head
from earl_jax.run.experiment import Experiment
from earl_jax.run.saved import load
from earl_jax.run.workdir import read_config

__all__ = ['export']

Gigabytes = Annotated[float, Range(1e-9, 10**6)]


def export(
    experiment: Experiment, params: policy.Params, folder: pathlib.Path, max_bytes: int = 5 * 10**9, *,
    adapters: bool = False,
) -> None:
  """Writes the policy to `folder`, which is whole as soon as it is there.

  Args:
    params: as jax or NumPy arrays, of which this process can see all shards.
    max_bytes: of one file of weights.
    adapters: without the model they were trained beside.

  Raises:
    UserError: there is something in `folder`, or the policy has no adapters.
  """
  config = experiment.config
  if adapters and 'adapters' not in params:
    raise UserError('--adapters: the run was trained without adapters (config.lora.rank=0); export the whole model')
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f'--out={folder}: already exists; choose a new folder')
  with hf.replacing(folder) as new:
    if adapters:
      peft.write_adapters(new, params['adapters'], config.lora, config.model)
    else:
      first, *others = experiment.end_tokens
      end = [first, *others] if others else first  # as config.json has it
      whole = policy.merged(params, experiment.model)['model']
      hf.write_checkpoint(new, experiment.model, whole, end, max_bytes)
    experiment.tokenizer.save_pretrained(new)
    described = expanded_head.manifest(experiment.interface, config.interface)
    expanded_head.write(new, described, params.get('expanded_head'))


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values, required=True)
  flags.DEFINE_string('out', None, 'Folder to write to; a new one.', flag_values=values, required=True)
  flags.DEFINE_bool('adapters', False, 'Write only the adapters, not the model with them.', flag_values=values)
  flags.DEFINE_float('max_gigabytes', 5.0, 'Of one file of weights.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  workdir, out = local_path(values.workdir, '--workdir'), local_path(values.out, '--out')
  gigabytes = fields.check(Gigabytes, values.max_gigabytes, '--max_gigabytes')
  config = read_config(workdir)
  cli.prepare_jax(config)
  experiment, params, step = load(workdir, config)
  export(experiment, params, out, int(gigabytes * 10**9), adapters=values.adapters)
  print(f'{out}: {workdir} after {step} steps')
  again = AutoTokenizer.from_pretrained(out)
  texts = [action.description for action in experiment.interface.space.actions]
  if any(tokenizer_lib.encode(again, text) != tokenizer_lib.encode(experiment.tokenizer, text) for text in texts):
    print(f'AutoTokenizer makes a {type(again).__name__} of it, which splits texts differently: load the tokenizer '
          'with PreTrainedTokenizerFast')


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
