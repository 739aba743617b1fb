"""Ways to step members: in one batched pass, one after another, in several processes; and which of them is taken."""
