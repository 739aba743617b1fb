"""Who is told what members do while they train: a module for each place that they write to."""
