"""A call as a sequence of kernels with their times, modelled or measured: what the exports show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arcweld.compiler.logs import printable
from arcweld.driver.estimate import Estimate, LaunchEstimate
from arcweld.report.profiles import Profile


@dataclass(frozen=True, slots=True)
class Slice:
    """A launch, or a step of the host, with its microseconds in a call.

    ``mean_us`` is the mean of the measurements where ``us`` is their median. ``launch`` is None for the host's steps,
    and for a launch of another range of sizes than that of the estimate: sizes that data decide may be in another one.
    """

    name: str
    us: float
    mean_us: float
    launch: LaunchEstimate | None
    on_host: bool = False


@dataclass(frozen=True, slots=True)
class Timeline:
    """The slices of a call in the order of execution. ``times`` says what the times are: every export repeats it.

    count     how often each was measured; 0 for modelled times
    before    microseconds of the call before its first kernel, which are assumed
    estimate  the estimate of the same call
    """

    times: str
    count: int
    before: float
    slices: tuple[Slice, ...]
    estimate: Estimate

    @property
    def by_name(self) -> Mapping[str, Slice]:
        """The slices by their names."""
        return {s.name: s for s in self.slices}


def modelled(estimate: Estimate) -> Timeline:
    """The timeline of an estimate."""
    slices = tuple(Slice(printable(x.name), x.modelled.us, x.modelled.us, x) for x in estimate.launches)
    before = max(0.0, estimate.seconds * 1e6 - sum(s.us for s in slices))
    return Timeline(
        f"modelled on {printable(estimate.card.title)}; nothing was measured", 0, before, slices, estimate
    )  # fmt: skip


def measured(estimate: Estimate, profile: Profile) -> Timeline:
    """The timeline of a profile, whose launches are looked up in the estimate of the same call.

    Its rows are those of this engine (``profiles.check_profile``). What it has no row for did not run.
    """
    launches = {x.name: x for x in estimate.launches}
    host = set(profile.measured.host) if profile.measured is not None else set()
    slices = tuple(
        Slice(printable(r.name), r.median_ms * 1e3, r.average_ms * 1e3, launches.get(r.name), r.name in host)
        for r in profile.rows
    )
    where = printable(profile.measured.device) if profile.measured is not None else "an unnamed device"
    return Timeline(
        f"measured on {where}, each launch by itself {profile.count} times", profile.count, 0.0, slices, estimate
    )  # fmt: skip


def timeline_rows(timeline: Timeline) -> list[dict[str, Any]]:
    """The launches' times in the form of a profile (``profiles.py``); the first entry says what they are."""
    count, launches = timeline.count or 1, [s for s in timeline.slices if not s.on_host]
    total = sum(s.mean_us for s in launches) or 1.0
    return [
        {"count": count, "arcweld": {"times": timeline.times}},
        *(
            {
                "name": s.name, "timeMs": s.mean_us * count / 1e3, "averageMs": s.mean_us / 1e3,
                "medianMs": s.us / 1e3, "percentage": 100 * s.mean_us / total,
            }
            for s in launches
        ),
    ]  # fmt: skip
