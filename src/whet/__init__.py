"""whet: sharpens a language model's reasoning with reinforcement learning. Importing it loads no
torch.
"""

from whet.errors import WhetError
from whet.types import Group, Message, Problem, Prompt, Sample, Sampling, Score, Task, Update

__all__ = [
    "Group",
    "Message",
    "Problem",
    "Prompt",
    "Sample",
    "Sampling",
    "Score",
    "Task",
    "Update",
    "WhetError",
]
