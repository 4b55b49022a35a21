"""Texts that a page or a terminal must not act upon, and a workdir whose samples say them."""

import json
import random

from earl_jax.config import default_config, parse

CRAFTED = (
    '<script>window.broken = 1</script>', '</script><script>window.broken = 1</script>', '<!--<script>', '-->', ']]>',
    '<img src=x onerror="window.broken = 1">', '<svg onload=window.broken=1>', '</style><style>*{display:none}</style>',
    '<iframe srcdoc="<script>parent.broken=1</script>">', '<base href="//example.com">', '<meta http-equiv=refresh>',
    'javascript:window.broken=1', '"><b>', "'><b>", '&lt;script&gt;', '&#x3c;', '\\u003cscript\\u003e',
    '${window.broken=1}', '{{data}}',
    '{{script}}', '$&', '$`', '__proto__', 'constructor',
    '\u202edesrever\u202c', '\u2066\u2069', 'שלום',
    'سلام', '\u2028', '\u2029', '\x00', '\x1b[2J\x1b[31m', '\x07\x08\x7f', '\ufeff', '\ufffe', '\ud800', '\udfff\ud800',
    'Z\u0351\u0352' + '\u0300' * 200, '👩‍👩‍👧', '\U0001f3f4\U000e0067', '\r\n', '\t', '   ', '', '\n\n\n', 'a' * 5_000,
    '$x_{', '%s', '====', '===== sample 0 =====', 'NaN', 'null',
)


def texts(count):
  """The crafted ones, then random ones: mixtures of them, and any code points."""
  rng, found = random.Random(0), list(CRAFTED)
  while len(found) < count:
    if rng.random() < 0.5:
      found.append(''.join(rng.choice(CRAFTED[:-8]) for _ in range(rng.randint(1, 4))))
    else:
      points = [rng.randrange(rng.choice((0x250, 0x110000))) for _ in range(rng.randrange(40))]
      found.append(''.join(map(chr, points)))
  return found


def decision(text, **more):
  return {'text': text, 'log_prob': -1.0} | more


def line(text, step=0, **more):
  """A sample that says `text` wherever it can."""
  made = [
      decision(text, reference=-2.0, entropy=0.5, legal=2, options=[[text, 0.36, ''], [text, 0.1, text]]),
      decision(' compare', environment='compare', language=True),
      decision(text, environment='compare', language=False, written=text, legal=1, options=[[text, 1.0, 'compare']]),
  ]
  part = {'reward': 0.5, 'advantage': 0.1, 'finished': True, 'omitted': 0, 'decisions': made}
  return {
      'format': 1, 'step': step, 'task': text[:20], 'problem': 0, 'row': 0, 'prompt': text,
      'factual': part | {'exact_match': True, 'metrics': {text[:20]: 1.0}},
      'counterfactual': part | {'environment': text[:20], 'fork': 1, 'decisions': made[1:]},
  } | more


def write_run(workdir, lines):
  """A workdir of ten steps; its samples one file a step."""
  (workdir / 'samples').mkdir()
  config = default_config()
  config.curriculum = [{'tasks': [('sort', {'n': 2}, 1.0)]}]
  (workdir / 'config.json').write_text(json.dumps(config.to_dict()))
  parse(config)
  metrics = [
      {'step': i, 'stage': 0, 'reward': i / 10, 'exact_match/sort2': i / 10, 'comparisons': 1.0} for i in range(10)
  ]
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in metrics))
  by_step = {}
  for sample in lines:
    by_step.setdefault(sample['step'], []).append(json.dumps(sample) + '\n')
  for step, found in by_step.items():
    (workdir / 'samples' / f'step_{step:06d}.jsonl').write_text(''.join(found))
  return workdir
