"""Tasks from what other frameworks train: a module for each, imported by its name and never with vecsweep.

`vecsweep.integrations.lightning` takes a LightningModule as it stands, `vecsweep.integrations.transformers` a model
that returns its own loss, `vecsweep.integrations.peft` one with an adapter, `vecsweep.integrations.ignite` the parts of
a supervised trainer. Each has a `make_task`; what it returns is an ordinary `Task`, for every verb.
`vecsweep.integrations.sklearn` has estimators.
"""
