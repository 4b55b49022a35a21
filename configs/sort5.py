"""Sort five hidden items: the stages of sort4.py and one more, and counterfactuals for a fifth of all rollouts.

  python -m earl_jax.train --config=configs/sort5.py --workdir=runs/sort5

Ends when greedy decoding has solved all 240 instances in two evaluations in a row, after 360 steps of 256 rollouts
(92,160) at the latest: 64 minutes on one CPU core beside other programs. Expected, proven by their comparisons: all
240, with 7.57 comparisons on average (6.933 is the optimum), after 360 steps of seed 0.
"""

from sort4 import STAGES  # beside this file

from earl_jax import config as config_lib


def get_config():
  config = config_lib.embedded_config()
  config.steps = 360
  config.stop_at_solved = True
  *stages, last = STAGES
  config.curriculum = (
      *stages,
      {**last, 'until': 0.9},
      config_lib.stage(
          ('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 1.0), ('sort', {'n': 4}, 3.0), ('sort', {'n': 5}, 9.0)
      ),
  )
  config.rollout.response_length = 224
  return config
