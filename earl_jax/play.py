"""Plays one episode in the terminal, decision by decision: the policy's, or yours.

  python -m earl_jax.play --workdir=runs/sort4 [--task=sort4 --index=7 | --question='…'] [--human]

Every decision of the policy is shown with its probability and with what else was possible. In a terminal Enter shows
the next call, and q ends it. A question of your own takes the place of the problem's; its environments stay those of
the problem, and the answer is not scored. With --human you choose among the legal actions, and are scored as a policy
is: that needs no checkpoint. Colours are those of the environments; NO_COLOR in the environment leaves them out.
"""

from collections.abc import Iterator
import dataclasses
import functools
import os
import sys
from typing import NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.acting import batched
from earl_jax.acting.options import options
from earl_jax.acting.trajectory import Trajectory
from earl_jax.action_space import LANGUAGE
from earl_jax.config import Config, UserError
from earl_jax.config.paths import local_path
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import cli, measure
from earl_jax.run.episodes import decisions, visible
from earl_jax.run.experiment import Experiment
from earl_jax.run.instances import instance_fields, side_by_side
from earl_jax.run.rewards import references
from earl_jax.run.samples import options_of
from earl_jax.run.saved import find_tasks, load, prepare_again, twice_as_long, with_lengths
from earl_jax.run.workdir import read_config
from earl_jax.tasks.base import Example, Outcome, Task

COLORS = (33, 208, 36, 170, 203, 45, 142, 99)  # of environments, among the 256 of terminals
ELSE = 4  # other possibilities that are shown


class Problem(NamedTuple):
  """What is played: a problem of a task; its user message may be somebody's own question."""

  task: Task
  example: Example
  asked: bool


class Choice(NamedTuple):
  """What somebody may choose: its name, the action ids that it stands for, and the environment of its colour."""

  name: str
  actions: list[int]
  environment: int


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values, required=True)
  flags.DEFINE_string(
      'task', None, "A task's label, such as sort4; the last of the run's curriculum by default.", flag_values=values
  )
  flags.DEFINE_integer('index', 0, 'Which of its held-out problems.', 0, flag_values=values)
  flags.DEFINE_string('question', None, "A question of your own, in place of the problem's.", flag_values=values)
  flags.DEFINE_bool('human', False, 'You decide.', flag_values=values)
  flags.DEFINE_float('temperature', 0.0, 'Of the policy; 0 takes the likeliest action.', 0.0, flag_values=values)


def main(values: flags.FlagValues) -> None:
  workdir = local_path(values.workdir, '--workdir')
  config = read_config(workdir)
  cli.prepare_jax(config)
  if values.human:
    experiment, _ = prepare_again(workdir, config)
  else:
    experiment, params, step = load(workdir, config)
  experiment, problem = find_problem(experiment, values)
  if values.human:
    print(f'{problem.task.label}, problem {values.index}')
    return human_plays(experiment, problem)
  print(f'{problem.task.label}, problem {values.index}; {workdir} after {step} steps')
  trajectory, lines = policy_plays(experiment, params, problem, values.temperature)
  print(_quoted(problem))
  for line, stops in lines:
    print(line)
    if stops and sys.stdin.isatty() and sys.stdout.isatty() and sys.stdin.readline() in ('', 'q\n'):
      break
  if not problem.asked:
    outcome, = experiment.outcomes([problem.task], [problem.example], trajectory)
    print(_scored(problem, outcome))


def find_problem(experiment: Experiment, values: flags.FlagValues) -> tuple[Experiment, Problem]:
  """The problem that the flags name, and the experiment with room for it.

  Raises:
    UserError: no such task, or the question is longer than a prompt.
  """
  config: Config = experiment.config
  task = find_tasks(experiment, [values.task])[0] if values.task else experiment.goal[-1]
  example = task.example(config.seed, 'test', values.index)
  asked, longest = values.question is not None, config.rollout.prompt_length
  if asked:
    example = example._replace(user=values.question)
  length = len(experiment.prompt(task, example))
  if asked and length > longest:
    raise UserError(
        f'--question: the prompt would have {length} tokens, and prompts of this run have at most {longest}; ask '
        'something shorter'
    )
  prompt_length = max(length, longest)
  experiment = with_lengths(experiment, prompt_length, twice_as_long(experiment, prompt_length))
  return experiment, Problem(task, example, asked)


def policy_plays(
    experiment: Experiment, params, problem: Problem, temperature: float
) -> tuple[Trajectory, Iterator[tuple[str, bool]]]:
  """An episode of the policy, and the lines that tell of it, each with whether a reader may want to stop there."""
  trajectory = measure.play_one(experiment, params, problem.task, problem.example, temperature)
  with jax.set_mesh(experiment.mesh):
    # Greedy decoding records what was likely at temperature 1.
    scoring = dataclasses.replace(experiment.scoring, temperature=temperature or 1.0)
    seen = options(params, None, trajectory._replace(states={}), scoring=scoring)
  return trajectory, _told(experiment, trajectory.row(0), jax.tree.map(lambda x: np.asarray(x[0]), seen))


def _told(experiment: Experiment, episode: Trajectory, seen) -> Iterator[tuple[str, bool]]:
  """Words of language side by side, with the least likely of them; a line for each decision of a call."""
  words, doubt = '', None  # what was said since the last call, and its least likely word
  for decision in decisions(experiment, episode):
    at = decision.slot - experiment.config.rollout.prompt_length
    possible = options_of(experiment, decision, episode, jax.tree.map(lambda x, at=at: x[at], seen))
    if decision.language and not decision.environment:
      words += visible(decision.text)
      if doubt is None or possible[0][1] < doubt[0][1]:
        doubt = possible
      continue
    if words:
      yield _said(words, doubt), False
      words, doubt = '', None
    chosen, *others = possible
    indent = '' if decision.language else '    '
    text = _paint(f'{visible(chosen[0], "↵").strip():<12}', decision.environment, bold=True)
    yield f'  {indent}{text} {_likely(chosen[1])}   {_alternatives(others)}'.rstrip(), False
    if decision.written.strip():
      yield f'  {indent}{_paint(visible(decision.written, " ").strip(), decision.environment)}', True
  if words:
    yield _said(words, doubt), False
  if not episode.finished:
    yield '  (cut off: no room was left)', False


def _said(words: str, doubt: list[tuple[str, float, str]]) -> str:
  chosen, *others = doubt
  told = f'least likely: {_shown(chosen[0])} {_likely(chosen[1])}   {_alternatives(others)}'
  lines = '\n'.join(f'  {line.strip()}' for line in words.strip('\n').split('\n'))
  return f'{lines}\n      {_paint(told, None)}'


def human_plays(experiment: Experiment, problem: Problem) -> None:
  """Somebody at the terminal decides, under the rules that hold for a policy, and is scored like one."""
  interface, decode = experiment.interface, experiment.tokenizer.decode
  space, eos = interface.space, experiment.tokenizer.eos_token_id
  fields = instance_fields(experiment.first_examples | {problem.task.label: problem.example})
  instance, offered = side_by_side([problem.example.instance], fields), experiment.offered([problem.task])
  # A batch of one, for environments in plain Python are asked by batches.
  legal, act = jax.jit(jax.vmap(interface.legal)), jax.jit(functools.partial(batched.act, interface))
  states = batched.reset(interface, *jax.tree.map(jnp.asarray, (instance, offered)))
  environment, tokens, finished = jnp.array([LANGUAGE], jnp.int32), [], False
  print(_quoted(problem))
  while not finished:
    inside = int(environment[0]) != LANGUAGE
    if inside:
      actions = np.flatnonzero(legal(environment, states, offered))
      choices = [
          Choice(space.actions[action].description, [int(action) + space.vocab_size], int(environment[0]))
          for action in actions
      ]
    else:
      choices = [Choice(space.specs[k].name, interface.route(k), int(k) + 1) for k in np.flatnonzero(offered)]
    chosen = _choose(experiment, choices, inside)
    if chosen is None:
      break
    written = []
    for action in chosen:
      effect = act(
          jnp.ones(1, bool), environment, states, offered=offered, action=jnp.array([action], jnp.int32)
      )
      length = int(effect.length[0])
      if len(tokens) + len(written) + length > experiment.config.rollout.response_length:
        print('no room is left: the episode ends here')
        return print(_scored(problem, _outcome(problem, states, decode(tokens), finished=False)))
      written += np.asarray(effect.tokens)[0, :length].tolist()
      environment, states, finished = effect.environment, effect.states, not inside and action == eos
    tokens += written
    print('  ' + _paint(visible(decode(written), ' ').strip(), int(environment[0]) or None))
  text = decode(tokens[: len(tokens) - finished])
  print(_scored(problem, _outcome(problem, states, text, finished)))


def _choose(experiment: Experiment, choices: list[Choice], inside: bool) -> list[int] | None:
  """The action ids that somebody chooses; None if there is nobody any more.

  Args:
    inside: in an environment, where there are no words and no end.
  """
  names = [_shown(choice.name) for choice in choices]
  told = [
      f'{i} {_paint(name, choice.environment, bold=True)}' for i, (name, choice) in enumerate(zip(names, choices), 1)
  ]
  told += [] if inside else ['t write', 'e end']
  while True:
    try:
      answer = input('   '.join([*told, 'q quit']) + '\n> ').strip()
      if answer in names or (answer.isdecimal() and 1 <= int(answer) <= len(names)):
        place = names.index(answer) if answer in names else int(answer) - 1
        return choices[place].actions
      if answer == 'q':
        return None
      if answer == 'e' and not inside:
        return [experiment.tokenizer.eos_token_id]
      if answer == 't' and not inside:
        return tokenizer_lib.encode(experiment.tokenizer, ' ' + input('text> ').strip() + '\n')
    except EOFError:
      return None
    print(f'{visible(answer, " ")!r} is not an option; type a number or letter from the line above')


def _outcome(problem: Problem, states, text: str, finished: bool) -> Outcome:
  states = jax.tree.map(lambda x: np.asarray(x)[0], states)
  return problem.task.outcome(problem.example.instance, states, text if problem.task.reads_text else '', finished)


def _quoted(problem: Problem) -> str:
  return '\n' + visible(problem.example.user) + '\n'


def _scored(problem: Problem, outcome: Outcome) -> str:
  """Reward and metrics, and what others would have spent."""
  if problem.asked:
    return '\na question of your own is not scored'
  spent = '  '.join(f'{name.replace("_", " ")} {value:g}' for name, value in outcome.metrics.items())
  lines = [f'\nreward {outcome.reward:.3f}  exact match {"yes" if outcome.exact_match else "no"}  {spent}']
  for name, others in references(problem.task, [problem.example]).items():
    lines.append(f'{name.replace("_", " ")}: ' + '  '.join(f'{key} {value:g}' for key, value in others.items()))
  return '\n'.join(lines)


def _alternatives(others: list[tuple[str, float, str]]) -> str:
  return _paint('  '.join(f'{_shown(text)} {_likely(p)}' for text, p, _ in others[:ELSE]), None)


def _shown(text: str) -> str:
  return visible(text, '↵').strip() or '␣'


def _likely(probability: float) -> str:
  return f'{probability:.1%}' if probability >= 0.001 else '<0.1%'


def _paint(text: str, environment: int | None, bold: bool = False) -> str:
  """Text in the colour of an environment; pale for None."""
  if not _colored():
    return text
  color = '2' if environment is None else f'38;5;{COLORS[(environment - 1) % len(COLORS)]}'
  return f'\x1b[{"1;" if bold else ""}{color}m{text}\x1b[0m'


@functools.cache
def _colored() -> bool:
  return sys.stdout.isatty() and not os.environ.get('NO_COLOR')


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
