"""What scores a response: verifiers, formats, judges and your own functions, alone or summed.

No task, no engine and no training here; what a user or a model wrote runs in workers only.
"""

from whet.rewards.base import Reward
from whet.rewards.combine import combined
from whet.rewards.registry import load, names

__all__ = ["Reward", "combined", "load", "names"]
