"""Sort four hidden items, starting from the embedded base model, with CPO.

  python -m earl_jax.train --config=configs/sort4.py --workdir=runs/sort4

A stage of the curriculum ends when its tasks are mastered, and the run when greedy decoding has solved everything
in two evaluations in a row, after 160 steps of 256 rollouts (40,960) at the latest: 5 to 12 minutes on two CPU cores.
Expected, proven by their comparisons: all 48 instances, with 4.83 to 4.92 comparisons on average (4.667 is the
optimum), after 120, 140 and 70 steps with seeds 0, 1 and 2, on a processor with AVX2 whose two cores are two devices.
Another one takes sums in another order, and so do other numbers of cores: with one device seeds took from 70 to all 160
steps, and ended with all 48, too. To go on: --config.stop_at_solved=False.
"""

from earl_jax import config as config_lib

# From ordering what is known to sorting what is not. Every n stays in the mix: what is no longer practised is soon
# forgotten.
STAGES = (
    config_lib.stage(('order', {'n': 2}, 1.0), ('sort', {'n': 2}, 1.0), until=0.9),
    config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 3.0), until=0.9),
    config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 2.0), ('sort', {'n': 4}, 9.0)),
)


def get_config():
  config = config_lib.embedded_config()
  config.steps = 160
  config.stop_at_solved = True
  config.evaluate_every = 10
  # Counterfactuals where a whole group earned nothing, and no others: as few rollouts, in less time (docs/results.md).
  config.algorithm.rewrite_fraction = 0.0
  config.curriculum = STAGES
  return config
