"""The engine: one training loop, and two ways to step the members it trains."""
