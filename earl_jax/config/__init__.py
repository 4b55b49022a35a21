"""Configuration: a locked ConfigDict at the edge, frozen dataclasses inside. Every bad value is named in the error."""

import dataclasses
import math
from typing import Annotated, Literal

import ml_collections

from earl_jax.config import fields, paths
from earl_jax.config.errors import UserError
from earl_jax.config.fields import Example, Range

Count = Annotated[int, Range(1, 10**6)]
Steps = Annotated[int, Range(1, 10**8)]
Share = Annotated[float, Range(0, 1)]
Coefficient = Annotated[float, Range(0, 1000)]  # of a term of the loss; beyond that float32 soon ends
Decay = Annotated[float, Range(0, 0.999999)]
Devices = Annotated[int, Range(-1, 2**14)]
Options = Annotated[dict, paths.options_with_paths]
TaskCall = Annotated[tuple[str, Options, Annotated[float, Range(1e-6, 10**6)]], Example("('sort', {'n': 4}, 1.0)")]


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of the curriculum.

  Attributes:
    tasks: (name, options, share of the prompts) of each, e.g. `(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 2.0))`. The
      name is that of a task in this package, a module that defines one (`'my_module'`), or a module and one of its
      tasks (`'my_module:MyTask'`). An option `path` is a file or folder, which is made absolute, or a URL.
    until: the stage ends when the mean of exact match over `mastery_window` batches reaches this for every task; 1.1
      never does.
    steps: if above 0, the stage ends after this many steps instead.
    imitate: learn from what the tasks' solvers would do (supervised fine-tuning), not from rollouts. Needs `steps`;
      what it leads to is the reference policy of the stages that follow.
  """

  tasks: tuple[TaskCall, ...] = ()
  until: Annotated[float, Range(0, 1000)] = 0.95
  steps: Annotated[int, Range(0, 10**8)] = 0
  imitate: bool = False


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How episodes are sampled.

  Attributes:
    prompts: problems per step.
    group: rollouts of each problem, at least 2.
    prompt_length: slots of the prompt; longer prompts are an error.
    response_length: slots of the response.
    temperature: of the policy, softmax(logits / temperature): what is sampled from, and what is trained.
    chunk: episodes decoded at a time where they are rewritten, measured or demonstrated; divides prompts * group.
  """

  prompts: Count = 32
  group: Annotated[int, Range(2, 10**6)] = 16
  prompt_length: Count = 64
  response_length: Count = 96
  temperature: Annotated[float, Range(0.01, 100)] = 1.0
  chunk: Count = 128


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
  """What an update does with them: GRPO, or CPO on top of it.

  Attributes:
    advantage: how rewards of a group become advantages.
    counterfactual: CPO if true; plain group advantages otherwise.
    rewrite_fraction: share of the rollouts that is rewritten besides those of all-zero groups.
    only_gains: keep the factual trajectory where the counterfactual one is not better. Without it, a fraction above 0
      pushes down everything a good policy does, the end of the episode included. Nothing changes at 0.
    entropy: coefficient of the entropy bonus.
    kl: coefficient of the KL to the reference policy; 0 keeps none in memory.
    reference_on_host: between its uses the reference policy waits in the memory of the hosts, not of the devices.
    clip_low, clip_high: the surrogate's ratio stays between 1 - clip_low and 1 + clip_high.
    dual_clip: where the advantage is negative, the surrogate is at most this many times its size.
    mini_batches: optimizer steps that a rollout batch is split into, by prompts.
    micro_batch: rows per forward and backward pass. 0 = as many as the devices have room for.
    skip_zero: leave rows with advantage 0 out of the update. The surrogate's gradient stays the same; entropy and KL
      of these rows are not counted.
  """

  advantage: Literal['grpo', 'dr_grpo', 'rloo'] = 'grpo'
  counterfactual: bool = True
  rewrite_fraction: Share = 0.0
  only_gains: bool = False
  entropy: Coefficient = 0.0
  kl: Coefficient = 0.001
  reference_on_host: bool = False
  clip_low: Share = 0.2
  clip_high: Annotated[float, Range(0, 1000)] = 0.2
  dual_clip: Annotated[float, Range(1, 1000)] = 3.0
  mini_batches: Count = 4
  micro_batch: Annotated[int, Range(0, 10**6)] = 32
  skip_zero: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW, after clipping by the global norm. Steps are those of the optimizer: `mini_batches` to a batch.

  Attributes:
    learning_rate: at its peak.
    warmup: steps in which it rises from 0, linearly; 0 = none.
    decay: the last share of all steps, in which it falls to 0, linearly; in between it is constant. In a run that is
      resumed with more steps it goes up again.
    weight_decay: decoupled, of all parameters.
    b1, b2: decay of the averages of the gradient and of its square.
    clip_norm: gradients of a larger global norm are scaled down to it.
  """

  learning_rate: Share = 1e-6
  warmup: Annotated[int, Range(0, 10**8)] = 0
  decay: Share = 0.0
  weight_decay: Share = 0.01
  b1: Decay = 0.9
  b2: Decay = 0.999
  clip_norm: Annotated[float, Range(1e-6, 10**6)] = 1.0


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters: the model is frozen, in `config.dtype`, and what is trained beside it is small.

  The expanded head is trained too. Without a change the policy is the frozen model, which is also its reference.

  Attributes:
    rank: of every adapter; 0 = none, all weights are trained.
    alpha: what an adapter adds is multiplied by alpha / rank.
    projections: which have one.
    adapters: folder of adapters to begin with, as PEFT or `earl_jax.export --adapters` wrote it; '' = new ones.
  """

  rank: Annotated[int, Range(0, 4096)] = 0
  alpha: Annotated[float, Range(1e-6, 10**6)] = 32.0
  projections: tuple[Literal['q', 'k', 'v', 'o', 'gate', 'up', 'down'], ...] = (
      'q', 'k', 'v', 'o', 'gate', 'up', 'down',
  )
  adapters: Annotated[str, paths.optional_path] = ''


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per axis of the mesh; -1 = all that are left.

  Attributes:
    data: rows are shared out over them, and each has all parameters.
    fsdp: rows are shared out, and parameters with them.
    tensor: heads, feed-forward width and vocabulary are shared out.
  """

  data: Devices = -1
  fsdp: Devices = 1
  tensor: Devices = 1


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything a run depends on.

  Attributes:
    model: 'embedded', or the folder or hub id of a Hugging Face checkpoint, or a GGUF file. A path is made absolute.
    dtype: of the computation. What is trained is float32, and so is the optimizer's state.
    remat: what the backward pass computes again instead of keeping it: 'none', 'dots' (all but matrix products) or
      'full' (every layer). Each needs less memory than the one before, and more time.
    attention: 'xla', 'cudnn' (on CUDA GPUs), 'splash' (on TPUs), these two in bfloat16, or 'auto': the one for here.
    interface: 'expanded' (EARL), or 'tagged': the same environments are called by text in tags.
    instructions: prompts tell how the environments are called, for models that follow instructions.
    worked_examples: solved problems of its task that go before a problem, called and written as the interface has it,
      for models too small to find the form of an answer by themselves. The same problems for all interfaces.
    worked_examples_in: where they stand: 'turns', each as an earlier turn of the conversation, or 'system', told in the
      system message.
    action_floor: actions of environments that the model takes more rarely than this where they are legal begin at this
      rate, so that they can be found; 0 = all begin as the model has them. See `run.first_rates`.
    route_lead: a routing action begins this many times as likely as the token that its row begins as, the first of its
      text, so that a model that is about to call an environment does so, and does not write that it does.
    seed: of data, sampling and interventions.
    steps: of the run, at most; each is one batch of rollouts and one update. 0 only measures what the run begins with.
    curriculum: stages, in order; the last runs to the end.
    mastery_window: batches over which exact match is averaged to leave a stage.
    stop_at_solved: end the run when greedy decoding of the last stage's tasks solves every evaluation problem, in two
      evaluations in a row.
    evaluate_every, checkpoint_every, sample_every: steps between greedy evaluations, saved checkpoints, and rollouts
      written out.
    trackers: services that show the run, besides metrics.jsonl: any of 'tensorboard', 'wandb', 'trackio', 'mlflow'.
    evaluation_prompts: held-out problems per task, for tasks too large to enumerate.
  """

  model: Annotated[str, paths.model_path] = 'embedded'
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: Literal['none', 'dots', 'full'] = 'none'
  attention: Literal['auto', 'xla', 'cudnn', 'splash'] = 'auto'
  interface: Literal['expanded', 'tagged'] = 'expanded'
  instructions: bool = False
  worked_examples: Annotated[int, Range(0, 100)] = 0
  worked_examples_in: Literal['turns', 'system'] = 'turns'
  action_floor: Annotated[float, Range(0, 0.1)] = 0.0
  route_lead: Annotated[float, Range(1, 1000)] = 1.0
  seed: Annotated[int, Range(0, 2**32 - 1)] = 0
  steps: Annotated[int, Range(0, 10**8)] = 100
  curriculum: Annotated[tuple[Stage, ...], Example("({'tasks': (('sort', {'n': 4}, 1.0),), 'until': 0.95},)")] = ()
  mastery_window: Count = 4
  stop_at_solved: bool = False
  evaluate_every: Steps = 20
  checkpoint_every: Steps = 20
  sample_every: Steps = 20
  trackers: Annotated[
      tuple[Literal['tensorboard', 'wandb', 'trackio', 'mlflow'], ...],
      Example("--config.trackers=\"'wandb','mlflow'\""),
  ] = ('tensorboard',)
  evaluation_prompts: Count = 256
  rollout: RolloutConfig = RolloutConfig()
  algorithm: AlgorithmConfig = AlgorithmConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  lora: LoraConfig = LoraConfig()
  mesh: MeshConfig = MeshConfig()

  @property
  def shared_rows(self) -> int:
    """The most devices that can share out all rows evenly; where some can, their number divides it."""
    return math.gcd(self.rollout.prompts, self.rollout.chunk, self.algorithm.micro_batch)


# What older workdirs say: fields by their names there, and what values of a field that is gone come to today.
REPLACED = {'worked_example': {False: {}, True: {'worked_examples': 1, 'worked_examples_in': 'system'}}}
RENAMED = {'window': 'mastery_window', 'algorithm.fraction': 'algorithm.rewrite_fraction'}


def default_config() -> ml_collections.ConfigDict:
  """The defaults as a locked ConfigDict: what a config file changes and returns."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config())).lock()


def embedded_config() -> ml_collections.ConfigDict:
  """Settings for the embedded base model: small problems, 256 short rollouts per step, learned in minutes on a CPU."""
  config = default_config()
  config.rollout.update(prompts=16, group=16, prompt_length=56, response_length=160, chunk=16)
  # Counterfactuals for a fifth of all rollouts, not only for dead groups: where a guess is often right, few are dead.
  config.algorithm.update(rewrite_fraction=0.2, only_gains=True, entropy=0.01, skip_zero=True)
  config.algorithm.micro_batch = 16  # less memory at a time: on a CPU the faster way (docs/scaling.md)
  # Keeps the policy's words true: it comes to act on what it says.
  config.algorithm.kl = 0.02
  # At a constant rate exact match swings once it is high.
  config.optimizer.update(learning_rate=5e-4, decay=0.3, weight_decay=0.0)
  return config


def stage(*tasks: tuple[str, dict, float], **settings) -> dict:
  """A curriculum stage for a config file; settings as in `Stage`."""
  return dataclasses.asdict(Stage()) | {'tasks': tasks} | settings


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

  Paths are made absolute: what is saved of the result is found from any folder.

  Raises:
    UserError: unknown key, wrong type, or an impossible value.
  """
  plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else _renamed(config)
  parsed = fields.build(Config, plain, 'config')
  _check(parsed)
  return parsed


def _check(config: Config) -> None:
  """Raises UserError where fields do not go together."""
  r, a = config.rollout, config.algorithm
  def require(condition, field, value, remedy):
    if not condition:
      raise UserError(f'config.{field}={value!r}: {remedy}')
  require(config.curriculum, 'curriculum', config.curriculum, 'give at least one stage')
  for i, s in enumerate(config.curriculum):
    require(s.tasks, f'curriculum[{i}].tasks', s.tasks, "give at least one task, such as ('sort', {'n': 4}, 1.0)")
    require(s.steps > 0 or not s.imitate, f'curriculum[{i}].steps', s.steps,
            'a stage with imitate=True does not end by itself; set its steps')
  batch, slots = r.prompts * r.group, r.prompt_length + r.response_length
  require(batch * slots < 2**31, 'rollout.prompts', r.prompts,
          f'a batch has prompts * group * (prompt_length + response_length) = {batch * slots} slots; let it have '
          'fewer than 2**31')
  require(batch % r.chunk == 0, 'rollout.chunk', r.chunk, f'choose a divisor of prompts * group = {batch}')
  require(r.prompts % a.mini_batches == 0, 'algorithm.mini_batches', a.mini_batches,
          f'choose a divisor of config.rollout.prompts = {r.prompts}')
  require(config.steps * a.mini_batches < 2**31, 'steps', config.steps,
          f'each has {a.mini_batches} mini-batches; let there be fewer than 2**31 of them in all')
  for field, off in (('action_floor', 0), ('route_lead', 1)):
    value = getattr(config, field)
    require(config.interface == 'expanded' or value == off, field, value,
            f"only config.interface='expanded' gives actions rows of their own; use that, or {off}")
  lora = config.lora
  require(lora.projections and len(set(lora.projections)) == len(lora.projections), 'lora.projections',
          lora.projections, 'name at least one, each once')
  require(lora.rank or not lora.adapters, 'lora.adapters', lora.adapters, 'give config.lora.rank too')
  rows = r.prompts // a.mini_batches * r.group
  require(rows % (a.micro_batch or 1) == 0, 'algorithm.micro_batch', a.micro_batch,
          f'choose a divisor of the {rows} rows of a mini-batch')


def _renamed(saved: dict) -> dict:
  """A saved config with today's names and fields."""
  names = {k: dict(v) if isinstance(v, dict) else v for k, v in saved.items()}
  for old, values in REPLACED.items():
    if isinstance(names.get(old), bool):
      names |= values[names.pop(old)]
  for old, new in RENAMED.items():
    *group, old_name = old.split('.')
    node = names.get(group[0], {}) if group else names
    if isinstance(node, dict) and old_name in node:
      node.setdefault(new.split('.')[-1], node.pop(old_name))
  return names
