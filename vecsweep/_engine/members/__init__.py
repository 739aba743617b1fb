"""Members: what one consists of, what many stacked consist of, and what a step does to them."""
