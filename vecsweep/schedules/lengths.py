"""Whether the length of a scheduler of torch is in steps or in epochs, which it does not say itself."""

from vecsweep._errors import warn_of_stumble


def look_at_length(scheduler: object, num_steps: int, num_epochs: int) -> None:
    """Warn of a scheduler that is stepped after each epoch, and whose length looks like that of a run in steps.

    Args:
        scheduler: one of torch's.
        num_steps: of the run.
        num_epochs: likewise.
    """
    lengths = [getattr(scheduler, name, None) for name in ("total_steps", "T_max")]
    length = next((own for own in lengths if isinstance(own, int)), 0)
    if length >= num_steps > num_epochs:
        warn_of_stumble(
            f"{type(scheduler).__name__} is made for {length} steps, and steps after each epoch, of which the run has "
            f'{num_epochs}. If these are steps of the run, pass `from_torch(..., interval="step")`.'
        )
