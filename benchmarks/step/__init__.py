"""A training step: its speed and its memory, ours and timm's."""
