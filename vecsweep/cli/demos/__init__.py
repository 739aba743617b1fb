"""Experiments on real data, each of which `vecsweep demo NAME` runs, tells and draws.

Each is a module of that name with a function `run` of a `Stage`: it says what it does as it does it, leaves its files
in a folder, and returns what it found as a document for JSON.
"""

DEMOS = {
    "digits": "find a learning rate for digits by a range test, and train with it",
    "regression": "compare four learning rates on a regression, and two phases with one lr throughout",
    "policies": "compare eight schedules on CIFAR-10, by a network of six convolutions",
    "cyclical": "read the bounds of cyclical learning rates off a range test, and train with them",
    "finder": "find the learning rate of Adam on MNIST, use it, and see what the usual mistakes cost",
}
"""What each does, as the help of the command says it."""
