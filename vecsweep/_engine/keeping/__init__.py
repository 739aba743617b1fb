"""A run between two windows of steps: what another process needs to go on with it."""
