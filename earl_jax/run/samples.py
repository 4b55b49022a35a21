"""Some rollouts of a step, for people: as text, and with all that was decided, as JSON lines (docs/viewer.md)."""

from collections.abc import Callable
import functools
import json
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np

from earl_jax.acting import policy
from earl_jax.acting.options import Options, options
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices import processes, sharding
from earl_jax.devices import rows as rows_lib
from earl_jax.run.collect import Experience
from earl_jax.run.episodes import as_text, Decision, decisions, draw_episode, visible
from earl_jax.run.experiment import Experiment
from earl_jax.run.problems import Problems
from earl_jax.run.workdir import write_atomically

__all__ = ['first_drawn', 'FORMAT', 'look_at', 'options_of', 'write_samples']

FORMAT = 1  # of a line
SAMPLES = 8  # rollouts at a time
# Bounds of a line, so that no file grows with what a model writes.
DECISIONS = 4_096  # of an episode, that are kept
DETAILED = 256  # of these, with what else was possible: first those in environments, then the least certain
SHOWN = 32  # possibilities of a decision
DRAWN = 1_024  # slots of an episode that is drawn
TEXT = 20_000  # characters of a prompt, or of what is written at once


def look_at(
    experiment: Experiment, params: policy.Params, reference: policy.Params | None, problems: Problems,
    experience: Experience,
) -> list[dict[str, Any]]:
  """Some rollouts of a batch, evenly spread over it, with what the policy thought at every decision.

  Of each stretch of the batch it is a rollout that has a counterfactual, if there is one.

  Args:
    params: what the batch was rolled out with.
    reference: the parameters of the reference policy, or None.

  Returns:
    JSON objects, each also with its 'text'; empty in all processes but the first.
  """
  picks, rewrites = _picks(experience), experience.rewrites
  devices = sharding.row_shards(experiment.mesh)
  filled = np.resize(picks, -(-len(picks) // devices) * devices)  # rows have to be shared out
  parts = [experience.factual] if rewrites is None else [experience.factual, rewrites.continued]
  with jax.set_mesh(experiment.mesh):
    looked = []
    for part in parts:
      part = rows_lib.take(part, filled, experiment.rows)._replace(states={})
      seen = options(params, reference, part, scoring=experiment.scoring)
      looked.append(jax.tree.map(processes.whole, (part, seen)))
  if jax.process_index() != 0:
    return []
  return [
      _line(experiment, problems, experience, int(row), [jax.tree.map(lambda x, i=i: x[i], part) for part in looked])
      for i, row in enumerate(picks)
  ]


def _picks(experience: Experience) -> np.ndarray:
  """int[…], rows of the batch."""
  count = len(experience.advantages)
  picks = np.arange(0, count, max(1, count // SAMPLES))[:SAMPLES]
  if experience.rewrites is None:
    return picks
  rewritten = experience.rewrites.choice.rows
  within = np.searchsorted(rewritten, picks)
  found = np.append(rewritten, count)[within]  # the first one from each pick on
  return np.where(found < np.append(picks, count)[1:], found, picks)


def _line(
    experiment: Experiment, problems: Problems, experience: Experience, row: int, seen: list[tuple[Trajectory, Options]]
) -> dict[str, Any]:
  """A row of the batch; seen: its factual episode and, where the batch has some, the counterfactual one."""
  problem, rewrites = row // experiment.config.rollout.group, experience.rewrites
  outcome, advantage = experience.outcomes[row], _short(experience.advantages[row], 6)
  replaced = rewrites is not None and bool(rewrites.replaced[row])
  played, factual = [_episode(experiment, *part) for part in seen], seen[0][0]
  prompt = experiment.tokenizer.decode(factual.tokens[factual.start : experiment.config.rollout.prompt_length])
  line = {
      'format': FORMAT,
      'task': problems.tasks[problem].label,
      'problem': problems.first + problem,
      'row': row,
      'prompt': prompt[:TEXT],
      'factual': {
          'reward': _short(outcome.reward, 6),
          'exact_match': bool(outcome.exact_match),
          'advantage': None if replaced else advantage,
          'metrics': {name: _short(value, 6) for name, value in outcome.metrics.items()},
      } | played[0],
      'counterfactual': None,
      'text': as_text(experiment, factual),
  }
  if rewrites is not None and row in rewrites.choice.rows:
    other, fork = played[1], int(np.sum(factual.actions[: rewrites.slots[row]] >= 0))  # decisions before it
    line['counterfactual'] = other | {
        'reward': _short(rewrites.rewards[row], 6),
        'advantage': advantage if replaced else None,
        'environment': experiment.interface.environments[rewrites.choice.environment].spec.name,
        'fork': fork,
        'decisions': other['decisions'][fork:],
    }
  return line


def _episode(experiment: Experiment, episode: Trajectory, seen: Options) -> dict[str, Any]:
  """What was decided in one episode, and what else was possible."""
  made = decisions(experiment, episode)
  kept, first = made[:DECISIONS], experiment.config.rollout.prompt_length
  # Least certain first, after all that is no mere word.
  ranks = sorted(range(len(kept)), key=[
      (x.language and not x.environment, -float(seen.entropy[x.slot - first])) for x in kept
  ].__getitem__)
  detailed = set(ranks[:DETAILED])
  told = []
  for i, decision in enumerate(kept):
    at = decision.slot - first
    entry = {'text': decision.text, 'log_prob': _short(episode.log_probs[decision.slot])}
    if seen.reference is not None:
      entry['reference'] = _short(seen.reference[at])
    if decision.environment or not decision.language:
      entry |= {'environment': _name(experiment, decision), 'language': decision.language}
    if decision.written:
      entry['written'] = decision.written[:TEXT]
    if i in detailed:
      possible = options_of(experiment, decision, episode, jax.tree.map(lambda x, at=at: x[at], seen))
      entry |= {'entropy': _short(seen.entropy[at]), 'legal': int(episode.legal[decision.slot].sum())}
      entry['options'] = [[text, _short(probability), name] for text, probability, name in possible]
    told.append(entry)
  return {'finished': bool(episode.finished), 'decisions': told, 'omitted': len(made) - len(kept)}


def options_of(
    experiment: Experiment, decision: Decision, episode: Trajectory, seen: Options
) -> list[tuple[str, float, str]]:
  """(text, probability, environment or '') of what was possible at a decision, the chosen one first.

  Then all legal expanded actions and the likeliest tokens, the likeliest first, at most `SHOWN`.

  Args:
    seen: at the decision alone.
  """
  space, log_prob = experiment.interface.space, episode.log_probs[decision.slot]
  found = []
  for expanded in np.flatnonzero(episode.legal[decision.slot]):
    name = space.specs[expanded].name if expanded < space.num_environments else _name(experiment, decision)
    found.append((int(expanded) + space.vocab_size, space.actions[expanded].description,
                  seen.expanded_log_probs[expanded], name))
  if decision.language:
    found += [
        (int(token), experiment.tokenizer.decode([token]), value, '')
        for token, value in zip(seen.tokens, seen.token_log_probs)
    ]
  name = _name(experiment, decision)
  others = sorted((x for x in found if x[0] != decision.action), key=lambda x: -x[2])[: SHOWN - 1]
  return [(decision.text, float(np.exp(log_prob)), name)] + [
      (text, float(np.exp(value)), name) for _, text, value, name in others
  ]


def _name(experiment: Experiment, decision: Decision) -> str:
  """Of the environment that a decision belongs to; '' for language, and inside tags."""
  specs = experiment.interface.space.specs
  return specs[decision.environment - 1].name if decision.environment else ''


def _short(value: float, digits: int = 4) -> float | None:
  """Of so many digits; None for what JSON lacks."""
  return float(f'{float(value):.{digits}g}') if math.isfinite(value) else None


def first_drawn(experiment: Experiment, experience: Experience) -> Callable[[pathlib.Path], None] | None:
  """What draws the first rollout of a batch to a file; None where it has room for more boxes than are worth drawing."""
  if experience.factual.slots > DRAWN:
    return None
  first = rows_lib.take(experience.factual, np.zeros(1, np.int32), sharding.replicated(experiment.mesh))
  return functools.partial(draw_episode, experiment, first, 0)


def write_samples(workdir: str | os.PathLike, step: int, samples: list[dict[str, Any]]) -> None:
  """Writes samples of `look_at` to workdir/samples: step_000123.txt, and step_000123.jsonl with all but the text.

  In the text each has a numbered heading, and nothing can move or colour what a terminal shows.
  """
  if jax.process_index() != 0:
    return
  folder = pathlib.Path(workdir) / 'samples'
  folder.mkdir(exist_ok=True)
  text = ''.join(f'===== sample {i} =====\n{visible(sample["text"])}\n' for i, sample in enumerate(samples))
  write_atomically(folder / f'step_{step:06d}.txt', text)
  lines = [{'step': step} | {name: value for name, value in x.items() if name != 'text'} for x in samples]
  text = ''.join(json.dumps(line, separators=(',', ':')) + '\n' for line in lines)
  write_atomically(folder / f'step_{step:06d}.jsonl', text)
