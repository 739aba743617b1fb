"""What runs hot on stacked tensors: optimizer updates and batching rules. Imports torch only."""
