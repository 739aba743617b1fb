"""The search for a learning rate: what is trained of a scan and of a race, what it costs, and the answer to it.

Not here: which learning rates are tried and who goes on, which needs no training (`race.py`); how far the answer can be
trusted (`uncertainty.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from vecsweep._arguments import NamedSchedules
from vecsweep._errors import Interrupted
from vecsweep._types import Mode
from vecsweep.observers.audience import Audience
from vecsweep.plan import Course, Member, Span
from vecsweep.pruning import step_of
from vecsweep.race import SCANNED, Race, Scan, is_alike, scan_lrs, scan_spacing, scan_steps, strategy_for
from vecsweep.request import Request
from vecsweep.results import Answer, Sweep
from vecsweep.results.ranking import Setting, group_by_setting
from vecsweep.results.trial import Trial
from vecsweep.samples import is_validated_soon
from vecsweep.schedules import constant
from vecsweep.schedules.schedule import Schedule
from vecsweep.suggest.basin import read_basin
from vecsweep.training import begin
from vecsweep.uncertainty import LATE, doubts_of, noise_of

_LAST_LOSSES = 0.25  # of a member's losses so far, whose mean is its score where there is no validation
_LEAST_LOSSES = 3  # one loss, of few samples, may be low by luck where training has broken the model


class Search:
    """What is trained to find an answer, and what it has cost so far.

    Args:
        request: what is trained, and how.
        named: the schedules.
        seeds: of the race; the scan has the first alone.
        span: the run.
        metric: what settings are judged by.
        mode: whether less or more of it is better.
        budget: in runs of one member.
    """

    def __init__(
        self,
        request: Request,
        named: NamedSchedules,
        seeds: Sequence[int],
        span: Span,
        metric: str,
        mode: Mode,
        budget: float,
    ) -> None:
        self.request = request
        self.watching_race = Audience()
        self.named = named
        self.seeds = seeds
        self.span = span
        self.metric = metric
        self.mode = mode
        self.budget = budget
        self.cost = 0.0
        self.start = math.nan  # what untrained weights score by the metric
        self.scans: list[Sweep] = []
        self.races: list[Sweep] = []

    def scan(self, combinations: Sequence[Setting]) -> dict[Setting, Scan]:
        """Scan all learning rates with each combination of schedule and hyperparameters.

        By the metric of the race, unless validating takes longer than the scan: then by the training loss.
        """
        num_steps = scan_steps(self.span.num_steps)
        spacing = scan_spacing(self.budget, self.span.num_steps, len(combinations))
        task = self.request.task
        metric = self.metric if is_validated_soon(task, num_steps) else "train_loss"
        scanned = task if metric == self.metric else replace(task, val_batches=None)
        request = replace(self.request, task=scanned, audience=self.request.audience.part("scan"))
        scans = {own: Scan() for own in combinations}
        missing = dict.fromkeys(combinations, scan_lrs(spacing))
        while missing:
            settings = [replace(own, lr=float(lr)) for own, lrs in missing.items() for lr in lrs]
            courses = {name: self._squeezed(name, num_steps) for name in self.named}
            runs = self._train(settings, self.seeds[:1], courses, Span(0, num_steps, None), request)
            self.scans.append(runs)
            scores = self._scores(runs, metric)
            if not any(map(math.isfinite, scores.values())) and (runs.diverged_at < 0).any():
                raise ValueError(
                    f"Nothing can be judged by {metric!r}: it is not finite at any learning rate, also where the "
                    "training losses are. Look for NaN in the validation data, and at what the metric divides by."
                )
            for setting, score in scores.items():
                scans[replace(setting, lr=1.0)].scores[setting.lr] = score
            missing = {own: lrs for own, scan in scans.items() if (lrs := scan.missing(spacing)).size}
        if not any(math.isfinite(score) for scan in scans.values() for score in scan.scores.values()):
            raise ValueError(
                f"No learning rate trains this task: all diverged within {num_steps} steps, from "
                f"{min(next(iter(scans.values())).scores):.0e} to {SCANNED[1]:g}. Look for NaN in the data and in the "
                "loss of the untrained model."
            )
        self.start = next(iter(scans.values())).start if metric == self.metric else self._measure_untrained(scans)
        return scans

    def _measure_untrained(self, scans: Mapping[Setting, Scan]) -> float:
        """What the metric is after one step at the least learning rate."""
        combination, scan = next(iter(scans.items()))
        courses = {name: self._squeezed(name, 1) for name in self.named}
        setting = replace(combination, lr=min(scan.scores))
        request = replace(self.request, audience=Audience())
        runs = self._train([setting], self.seeds[:1], courses, Span(0, 1, None), request)
        return next(iter(self._scores(runs, self.metric).values()))

    def race(self, scans: Mapping[Setting, Scan]) -> Race:
        """Let the learning rates race that the scans leave.

        While the budget lasts, others follow: of those sent home, where all others diverged; beyond an edge that the
        best stands at, then between it and the better of its neighbours.
        """
        num_seeds = len(self.seeds)
        self.watching_race = self.request.audience.part("race")
        strategy = strategy_for(self.budget - self.cost, scans.values(), self.span.num_steps, num_seeds)
        race = Race(strategy)
        starting = [replace(own, lr=float(lr)) for own, scan in scans.items() for lr in scan.window(strategy.spacing)]
        race.admit(len(starting))
        self._run(race, starting)
        worst = num_seeds * strategy.rungs[-1]  # that one more may cost
        further = (
            lambda: race.after_divergence(self.start),
            race.beyond_edge,
            lambda: race.beside_winner(self.start),
        )
        for find in further:
            while self.cost + worst <= self.budget and race.end and (setting := find()) is not None:
                self._run(race, [setting])
        return race

    def answer(self, scans: Mapping[Setting, Scan], race: Race, tolerance: float) -> Answer:
        """Read the answer off a race."""
        if race.end == 0:
            raise ValueError(
                f"No learning rate trains this task for {self.span.num_steps} steps: all that a scan of "
                f"{scan_steps(self.span.num_steps)} steps left diverged later. Clip gradients (`max_grad_norm`), or "
                "look for outliers in the data."
            )
        sign = 1 if self.mode == "min" else -1
        winner = race.winner
        gaps = race.gaps(self.start)
        noise = noise_of(self.races, self.span.num_steps, self.metric, self.start - race.scores[race.end][winner])
        started = {member.setting for member in self.races[0].members}
        trials = [self._trial(race, own, gaps[own], sign, is_late=own not in started) for own in gaps]
        trials.sort(key=lambda trial: (trial.setting != winner, -trial.rungs[-1], trial.gap))
        alike = sorted((own for own in gaps if is_alike(own, winner)), key=lambda own: own.lr)
        lrs, behind = (np.array(values) for values in ([own.lr for own in alike], [gaps[own] for own in alike]))
        drift = race.drift(anneals=self._anneals(winner.schedule))
        basin = read_basin(lrs, behind, alike.index(winner), tolerance + noise)
        return Answer(
            lr=basin.lr * drift,
            interval=(basin.low * drift, basin.high * drift),
            schedule=winner.schedule,
            hyper=dict(winner.hyper),
            doubts=tuple(doubts_of(race, scans[replace(winner, lr=1.0)], self.start, self.metric, tolerance + noise)),
            trials=tuple(trials),
            winner=trials[0],
            metric=self.metric,
            mode=self.mode,
            start=sign * self.start,
            tolerance=tolerance,
            noise=noise,
            num_steps=self.span.num_steps,
            budget=self.budget,
            cost=self.cost,
            runs=(*self.scans, *self.races),
            _train_anew=partial(self._train_alone, winner),
        )

    def _train_alone(self, setting: Setting) -> Sweep:
        """Train a setting through the whole run, as the race would have."""
        members = tuple(Member(setting.lr, seed, setting.schedule, dict(setting.hyper)) for seed in self.seeds)
        course = Course(self.named[setting.schedule], setting.schedule, 0, self.span.num_steps)
        request = replace(self.request, journal=None, audience=Audience())
        return begin(request, members, (course,) * len(members), self.span)

    def _run(self, race: Race, settings: Sequence[Setting]) -> None:
        """Train settings from the first step on, rung by rung, for as long as they keep up."""
        total, last = self.span.num_steps, race.strategy.rungs[-1]
        at = {step_of(rung, total): rung for rung in race.strategy.rungs}

        def keep(runs: Sweep) -> list[int]:
            by_setting = group_by_setting([member.setting for member in runs.members])
            going_on = set(by_setting)
            if (rung := at.get(len(runs.train_loss))) is not None:
                scores = self._scores(runs, self.metric)
                alive = {own: score for own, score in scores.items() if self._is_in(runs, by_setting[own])}
                best = race.judge(rung, alive)
                going_on = best if rung < last else going_on
            return [i for own in going_on for i in by_setting[own]]

        # One of torch's schedulers may follow a metric, epoch by epoch; others need none between the rungs.
        are_planned = all(isinstance(schedule, Schedule) for schedule in self.named.values())
        late = tuple(share * last for share in LATE) if last == 1.0 else ()
        request = replace(
            self.request,
            prune=keep,
            audience=self.watching_race,
            rungs=(*race.strategy.rungs, *late),
            rung_metric=None if self.metric == "train_loss" else self.metric,
            val_every=total if are_planned else None,
        )
        courses = {name: Course(schedule, name, 0, total) for name, schedule in self.named.items()}
        span = replace(self.span, num_steps=step_of(last, total))
        self.races.append(self._train(settings, self.seeds, courses, span, request))
        keep(self.races[-1])

    def _train(
        self,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        courses: Mapping[str, Course],
        span: Span,
        request: Request,
    ) -> Sweep:
        """Train settings with seeds, and note what it cost."""
        members = tuple(Member(own.lr, seed, own.schedule, dict(own.hyper)) for own in settings for seed in seeds)
        try:
            of_members = tuple(courses[member.schedule] for member in members)
            runs = begin(request, members, of_members, span, is_part=True)
        except Interrupted as interruption:
            interruption.add_note("The race was not over, so that there is no answer yet.")
            raise
        self.cost += float((~np.isnan(runs.train_loss)).sum()) / self.span.num_steps
        return runs

    def _squeezed(self, name: str, num_steps: int) -> Course:
        """A schedule that comes to its end within a scan; one of torch's has its own pace, and stands still instead."""
        schedule = self.named[name]
        return Course(schedule if isinstance(schedule, Schedule) else constant(), name, 0, num_steps)

    def _anneals(self, name: str) -> bool:
        """Whether a schedule comes down at the end; one of torch's mostly does."""
        schedule = self.named[name]
        return schedule.anneals if isinstance(schedule, Schedule) else True

    def _scores(self, runs: Sweep, metric: str) -> dict[Setting, float]:
        """How good each setting is so far, the mean over seeds, less being better; infinite where one diverged."""
        if metric == "train_loss":
            num = len(runs.train_loss)
            taken = min(num, max(_LEAST_LOSSES, math.ceil(_LAST_LOSSES * num)))
            values = runs.train_loss[num - taken :].mean(axis=0)
        else:
            values = runs.metrics[metric][-1] * (1 if self.mode == "min" else -1)
        values = np.where(np.isnan(values) | (runs.diverged_at >= 0), np.inf, values)
        by_setting = group_by_setting([member.setting for member in runs.members])
        return {own: float(values[list(members)].mean()) for own, members in by_setting.items()}

    @staticmethod
    def _is_in(runs: Sweep, members: Sequence[int]) -> bool:
        """Whether a setting has not been taken out of the race."""
        return all(runs.members[i].stopped_at is None for i in members)

    def _trial(self, race: Race, setting: Setting, gap: float, sign: int, *, is_late: bool) -> Trial:
        measured = [(rung, own[setting]) for rung, own in race.scores.items() if setting in own]
        scores = tuple(sign * score if math.isfinite(score) else math.nan for _, score in measured)
        gap = math.inf if math.isnan(scores[-1]) else gap
        return Trial(setting, tuple(rung for rung, _ in measured), scores, gap, is_late)
