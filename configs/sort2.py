"""Sort two hidden items: the smallest problem with all of EARL in it, learned in minutes.

  python -m earl_jax.train --config=configs/sort2.py --workdir=runs/sort2

benchmarks/cpo_vs_grpo.py compares the algorithms on it.
"""

import pathlib
import runpy

from earl_jax import config as config_lib

# By path, so that it is found from any folder.
SORT4 = pathlib.Path(__file__).with_name('sort4.py')


def get_config():
  config = runpy.run_path(str(SORT4))['get_config']()
  config.steps = 60
  config.curriculum = (config_lib.stage(('sort', {'n': 2}, 1.0)),)
  config.rollout.prompts = 8
  config.rollout.response_length = 96
  config.evaluate_every = 5
  return config
