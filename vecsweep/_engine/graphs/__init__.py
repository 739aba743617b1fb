"""A step as a graph: put in order, lowered to code, captured on a GPU."""
