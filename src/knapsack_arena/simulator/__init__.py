"""A simulated policy with hidden success rates that change when it is trained, to compare allocation rules on.

See docs/simulator.md for the model, how it was validated, and what it cannot show.
"""

from knapsack_arena.simulator.learner import LearnerSettings
from knapsack_arena.simulator.population import Population
from knapsack_arena.simulator.presets import PRESETS
from knapsack_arena.simulator.recorded import fit_population, population_of_trace
from knapsack_arena.simulator.simulation import Simulation

__all__ = ["PRESETS", "LearnerSettings", "Population", "Simulation", "fit_population", "population_of_trace"]
