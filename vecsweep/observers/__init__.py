"""Who is told what members do while they train: pass observers of your own, or these, as `callbacks`.

`TensorBoard`, `MLflow`, `WandB` and `Trackio` import the packages that they write to when one of them is made.
`LiveFigure` draws into a notebook.
"""

from vecsweep.observers.live import LiveFigure
from vecsweep.observers.mlflow import MLflow
from vecsweep.observers.observer import Observer, Run
from vecsweep.observers.tensorboard import TensorBoard
from vecsweep.observers.trackio import Trackio
from vecsweep.observers.wandb import WandB

__all__ = ["LiveFigure", "MLflow", "Observer", "Run", "TensorBoard", "Trackio", "WandB"]
