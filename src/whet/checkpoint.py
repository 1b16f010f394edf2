"""What is kept of a run. A directory of it is there whole, or not at all."""

from whet.model.commit import committed

__all__ = ["committed"]
