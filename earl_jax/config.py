"""Configuration: a locked ConfigDict at the edge, frozen dataclasses inside. Every bad value is named in the error."""

import dataclasses
import types
import typing
from typing import Any

import ml_collections


class UserError(Exception):
  """A mistake the user can mend. Entry points print its one line and exit with status 2, without a traceback."""


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of the curriculum.

  Attributes:
    tasks: (name, options, share of the prompts) of each, e.g. `(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 2.0))`. The
      name is that of a task in this package, a module that defines one (`'my_module'`), or a module and one of its
      tasks (`'my_module:MyTask'`).
    until: the stage ends when the mean of exact match over `mastery_window` batches reaches this for every task; 1.1
      never does.
    steps: if above 0 the stage ends after so many steps instead.
    imitate: learn from what the tasks' solvers would do (supervised fine-tuning), not from rollouts. Needs `steps`;
      what it leads to is the reference policy of the stages that follow.
  """

  tasks: tuple = ()
  until: float = 0.95
  steps: int = 0
  imitate: bool = False


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How episodes are sampled.

  Attributes:
    prompts: problems a step.
    group: rollouts of each problem, at least 2.
    prompt_length: slots of the prompt; longer prompts are an error.
    response_length: slots of the response.
    temperature: of the policy, softmax(logits / temperature): what is sampled from, and what is trained.
    chunk: rows of counterfactual episodes decoded at a time; divides prompts * group.
  """

  prompts: int = 32
  group: int = 16
  prompt_length: int = 64
  response_length: int = 96
  temperature: float = 1.0
  chunk: int = 128


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  """What an update does with them: GRPO, or CPO on top of it.

  Attributes:
    advantage: 'grpo', 'dr_grpo' or 'rloo'.
    counterfactual: CPO if true; plain group advantages otherwise.
    rewrite_fraction: of rollouts rewritten besides those of all-zero groups.
    only_gains: keep the factual trajectory where the counterfactual one is not better. Without it, a fraction above 0
      pushes down everything a good policy does, the end of the episode included. Nothing changes at 0.
    entropy: coefficient of the entropy bonus.
    kl: coefficient of the KL to the reference policy; 0 keeps none in memory.
    reference_on_host: between its uses the reference policy waits in the memory of the hosts, not of the devices.
    clip_low, clip_high: the surrogate's ratio stays between 1 - clip_low and 1 + clip_high.
    dual_clip: where the advantage is negative, the surrogate is at most this many times its size.
    mini_batches: optimizer steps a rollout batch is split into, by prompts.
    micro_batch: rows per forward and backward pass.
    skip_zero: leave rows with advantage 0 out of the update. The surrogate's gradient stays the same; entropy and KL
      of these rows are not counted.
  """

  advantage: str = 'grpo'
  counterfactual: bool = True
  rewrite_fraction: float = 0.0
  only_gains: bool = False
  entropy: float = 0.0
  kl: float = 0.001
  reference_on_host: bool = False
  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 3.0
  mini_batches: int = 4
  micro_batch: int = 32
  skip_zero: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW, after clipping by the global norm. Steps are those of the optimizer: `mini_batches` to a batch.

  Attributes:
    learning_rate: at its highest.
    warmup: steps in which it rises from 0, linearly; 0 = none.
    decay: the last share of all steps, in which it falls to 0, linearly; in between it is constant.
    weight_decay: decoupled, of all parameters.
    b1, b2: decay of the averages of the gradient and of its square.
    clip_norm: gradients of a larger global norm are scaled down to it.
  """

  learning_rate: float = 1e-6
  warmup: int = 0
  decay: float = 0.0
  weight_decay: float = 0.01
  b1: float = 0.9
  b2: float = 0.999
  clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per axis of the mesh; -1 = all that are left.

  Attributes:
    data: rows are shared out over them, and each has all parameters.
    fsdp: rows are shared out, and parameters with them.
    tensor: heads, feed-forward width and vocabulary are shared out.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything a run depends on.

  Attributes:
    model: 'embedded', or the folder or hub id of a Hugging Face checkpoint.
    dtype: of the computation, 'float32' or 'bfloat16'. Weights to be trained and the optimizer's are float32.
    remat: what the backward pass computes again instead of keeping it: 'none', 'dots' (all but matrix products) or
      'full' (every layer). Each needs less memory than the one before, and more time.
    attention: 'xla', 'cudnn' (on CUDA GPUs, in bfloat16), or 'auto': the faster one of those that can be.
    interface: 'expanded' (EARL), or 'tagged': the same environments are called by text in tags.
    instructions: prompts tell how the environments are called, for models that follow instructions.
    seed: of data, sampling and interventions.
    steps: of the run, at most; each is one batch of rollouts and an update.
    curriculum: stages, in order; the last one lasts.
    mastery_window: batches over which exact match is averaged to leave a stage.
    stop_at_solved: end the run when greedy decoding of the last stage's tasks solves every evaluation problem, in two
      evaluations in a row.
    evaluate_every, checkpoint_every, sample_every: steps between greedy evaluations, saved checkpoints, and rollouts
      written out.
    trackers: services that show the run besides metrics.jsonl: any of 'tensorboard', 'wandb', 'trackio', 'mlflow'.
    evaluation_prompts: held-out problems per task, for tasks too large to enumerate.
  """

  model: str = 'embedded'
  dtype: str = 'float32'
  remat: str = 'none'
  attention: str = 'auto'
  interface: str = 'expanded'
  instructions: bool = False
  seed: int = 0
  steps: int = 100
  curriculum: tuple[Stage, ...] = ()
  mastery_window: int = 4
  stop_at_solved: bool = False
  evaluate_every: int = 20
  checkpoint_every: int = 20
  sample_every: int = 20
  trackers: tuple[str, ...] = ('tensorboard',)
  evaluation_prompts: int = 256
  rollout: RolloutConfig = RolloutConfig()
  algorithm: AlgorithmConfig = AlgorithmConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()


TRACKERS = ('tensorboard', 'wandb', 'trackio', 'mlflow')

# Fields by their names in older workdirs.
RENAMED = {'window': 'mastery_window', 'algorithm.fraction': 'algorithm.rewrite_fraction'}


def default_config() -> ml_collections.ConfigDict:
  """The defaults as a locked ConfigDict: what a config file changes and returns."""
  return ml_collections.ConfigDict(_plain(Config())).lock()


def embedded_config() -> ml_collections.ConfigDict:
  """Settings for the embedded base model: small problems, 256 short rollouts a step, learned in minutes on a CPU."""
  config = default_config()
  config.rollout.update(prompts=16, group=16, prompt_length=56, response_length=160, chunk=128)
  # Counterfactuals for a fifth of all rollouts, not only for dead groups: where a guess is often right, few are dead.
  config.algorithm.update(rewrite_fraction=0.2, only_gains=True, entropy=0.01, skip_zero=True)
  # Keeps the policy's words true: it comes to act on what it says.
  config.algorithm.kl = 0.02
  # At a constant rate exact match swings once it is high.
  config.optimizer.update(learning_rate=5e-4, decay=0.3, weight_decay=0.0)
  return config


def stage(*tasks: tuple[str, dict, float], **fields) -> dict:
  """A curriculum stage for a config file; fields as in `Stage`."""
  return {'tasks': tasks} | fields


# What sets the methods of the paper's comparison apart: (interface, CPO, supervised fine-tuning first).
METHODS = {
    'earl': ('expanded', True, False),
    'prompt_cpo': ('tagged', True, False),
    'prompt_grpo': ('tagged', False, False),
    'sft_grpo': ('tagged', False, True),
}


def apply_method(config: ml_collections.ConfigDict, method: str, sft_steps: int) -> ml_collections.ConfigDict:
  """Turns a config into that of EARL or of a baseline; all else stays what it is.

  Args:
    config: its last stage is what is learned. `sft_grpo` sees demonstrations of it in place of all stages before: they
      would have it forget what it was shown.
    method: a key of METHODS.
    sft_steps: how long, for `sft_grpo`.

  Raises:
    UserError: unknown method.
  """
  if method not in METHODS:
    raise UserError(f'method {method!r}: choose one of {", ".join(METHODS)}')
  config.interface, config.algorithm.counterfactual, sft = METHODS[method]
  if sft:
    demonstrated = stage(*config.curriculum[-1]['tasks'], steps=sft_steps, imitate=True)
    config.curriculum = (demonstrated, config.curriculum[-1])
  return config


def parse(config: ml_collections.ConfigDict | dict) -> Config:
  """Checks a ConfigDict, or what a run has saved of one, and freezes it. A field that is absent has its default.

  Raises:
    UserError: unknown key, wrong type, or a value that can't be.
  """
  plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else _renamed(config)
  stages = plain.pop('curriculum', ())
  parsed = _build(Config, plain, 'config')
  parsed = dataclasses.replace(
      parsed, curriculum=tuple(_build(Stage, dict(s), f'config.curriculum[{i}]') for i, s in enumerate(stages))
  )
  _check(parsed)
  return parsed


def _check(config: Config) -> None:
  r, a = config.rollout, config.algorithm
  def require(condition, field, value, remedy):
    if not condition:
      raise UserError(f'config.{field}={value!r}: {remedy}')
  require(config.curriculum, 'curriculum', config.curriculum, 'give at least one stage')
  for i, s in enumerate(config.curriculum):
    require(s.tasks, f'curriculum[{i}].tasks', s.tasks, "give at least one task, such as ('sort', {'n': 4}, 1.0)")
    require(s.steps > 0 or not s.imitate, f'curriculum[{i}].steps', s.steps,
            'imitation has no end of its own; give a number of steps')
    for call in s.tasks:
      require(_is_task_call(call), f'curriculum[{i}].tasks', call,
              "write each task as (name, options, share > 0), such as ('sort', {'n': 4}, 1.0)")
  for field, kinds in (
      ('interface', ('expanded', 'tagged')), ('dtype', ('float32', 'bfloat16')), ('remat', ('none', 'dots', 'full')),
      ('attention', ('auto', 'xla', 'cudnn')),
  ):
    value = getattr(config, field)
    require(value in kinds, field, value, f'choose one of {", ".join(kinds)}')
  require(set(config.trackers) <= set(TRACKERS), 'trackers', config.trackers,
          f"choose among {', '.join(TRACKERS)}; write several as --config.trackers=\"'wandb','mlflow'\"")
  for field in ('steps', 'mastery_window', 'evaluate_every', 'checkpoint_every', 'sample_every', 'evaluation_prompts'):
    require(getattr(config, field) >= 1, field, getattr(config, field), 'choose a number from 1 on')
  for field in ('prompts', 'prompt_length', 'response_length', 'chunk'):
    require(getattr(r, field) >= 1, f'rollout.{field}', getattr(r, field), 'choose a number from 1 on')
  require(r.group >= 2, 'rollout.group', r.group, 'a group advantage needs at least 2 rollouts')
  require(r.temperature > 0, 'rollout.temperature', r.temperature, 'choose a number above 0')
  batch = r.prompts * r.group
  require(batch % r.chunk == 0, 'rollout.chunk', r.chunk, f'choose a divisor of prompts * group = {batch}')
  kinds = ('grpo', 'dr_grpo', 'rloo')
  require(a.advantage in kinds, 'algorithm.advantage', a.advantage, f'choose one of {", ".join(kinds)}')
  require(0 <= a.rewrite_fraction <= 1, 'algorithm.rewrite_fraction', a.rewrite_fraction, 'choose a number from 0 to 1')
  require(a.mini_batches >= 1 and r.prompts % a.mini_batches == 0, 'algorithm.mini_batches', a.mini_batches,
          f'choose a divisor of config.rollout.prompts = {r.prompts}')
  rows = r.prompts // a.mini_batches * r.group
  require(a.micro_batch >= 1 and rows % a.micro_batch == 0, 'algorithm.micro_batch', a.micro_batch,
          f'choose a divisor of the {rows} rows of a mini-batch')


def _is_task_call(call: Any) -> bool:
  """Whether `call` is (name, options, share > 0)."""
  if not isinstance(call, (tuple, list)) or len(call) != 3:
    return False
  name, options, share = call
  return isinstance(name, str) and isinstance(options, dict) and isinstance(share, (int, float)) and share > 0


def _renamed(saved: dict) -> dict:
  """A saved config with today's names."""
  fields = {k: dict(v) if isinstance(v, dict) else v for k, v in saved.items()}
  for old, new in RENAMED.items():
    *group, old_name = old.split('.')
    node = fields.get(group[0], {}) if group else fields
    if isinstance(node, dict) and old_name in node:
      node.setdefault(new.split('.')[-1], node.pop(old_name))
  return fields


def _plain(value: Any) -> Any:
  if not dataclasses.is_dataclass(value):
    return value
  return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _build(cls: type, values: dict, where: str) -> Any:
  hints = typing.get_type_hints(cls)
  unknown = sorted(set(values) - set(hints))
  if unknown:
    raise UserError(f'{where}.{unknown[0]}: no such field; known: {", ".join(hints)}')
  checked = {}
  for name, value in values.items():
    kind = hints[name]
    if dataclasses.is_dataclass(kind):
      if not isinstance(value, dict):
        fields = ', '.join(typing.get_type_hints(kind))
        raise UserError(f'{where}.{name}={value!r}: expected a group of fields: {fields}')
      checked[name] = _build(kind, value, f'{where}.{name}')
      continue
    kind = typing.get_origin(kind) or kind
    if isinstance(kind, types.UnionType):
      raise TypeError(f'{cls.__name__}.{name}: unions are not supported')
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    if kind is tuple and isinstance(value, list):
      value = tuple(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
      raise UserError(f'{where}.{name}={value!r}: expected {kind.__name__}')
    checked[name] = value
  return cls(**checked)
