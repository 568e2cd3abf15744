"""A simulated policy with hidden success rates that move when it is trained: an arena for rules that divide budgets.

See docs/simulator.md for the model, how it was validated, and what it cannot say.
"""

from knapsack_rl.simulator.learner import LearnerSettings
from knapsack_rl.simulator.population import Population
from knapsack_rl.simulator.presets import PRESETS
from knapsack_rl.simulator.recorded import fit_population, population_of_trace
from knapsack_rl.simulator.simulation import Simulation

__all__ = ["PRESETS", "LearnerSettings", "Population", "Simulation", "fit_population", "population_of_trace"]
