"""What judges a response: verifiers, formats and your own functions, alone or summed."""

from whet.rewards.combine import combined
from whet.rewards.registry import Reward, load, names

__all__ = ["Reward", "combined", "load", "names"]
