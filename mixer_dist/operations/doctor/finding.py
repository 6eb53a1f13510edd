"""What a check came to, on one rank and on all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Finding:
    """Something that was looked at: it is well, or there is a way to mend it."""

    name: str
    ok: bool
    text: str
    mend: str = ""
    ranks: tuple[int, ...] = ()
    """Those that found it, or are at fault."""


def well(name: str, text: str) -> Finding:
    """All is as it should be."""
    return Finding(name, True, text)


def trouble(name: str, text: str, mend: str, ranks: Iterable[int] = ()) -> Finding:
    """Something is not, and what to do about it."""
    return Finding(name, False, text, mend, tuple(ranks))


def summed(of_ranks: Sequence[Sequence[Finding]]) -> list[Finding]:
    """All ranks' findings in the order of the checks: what is the same once, with its ranks.

    Where all is well, the words of the lowest rank stand for those of the others.
    """
    groups: dict[tuple[str, ...], list[tuple[int, Finding]]] = {}
    for rank, findings in enumerate(of_ranks):
        for finding in findings:
            key = (finding.name,) if finding.ok else (finding.name, finding.text, finding.mend)
            groups.setdefault(key, []).append((rank, finding))
    merged = [
        replace(members[0][1], ranks=tuple(sorted({rank for rank, _ in members})))
        for members in groups.values()
    ]
    names = list(dict.fromkeys(finding.name for finding in merged))
    return sorted(merged, key=lambda finding: (names.index(finding.name), finding.ok))


def finding_lines(finding: Finding, hosts: Sequence[str]) -> list[str]:
    """A finding in words, and who has it where that is not everybody."""
    is_everywhere = len(finding.ranks) in (0, len(hosts))
    where = "" if is_everywhere else f" [{ranks_in_words(finding.ranks, hosts)}]"
    lines = [f"{'ok' if finding.ok else 'BAD':<4}{finding.name:<16}{finding.text}{where}"]
    return lines if finding.ok else [*lines, f"{'':<20}mend: {finding.mend}"]


def ranks_in_words(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Such as `ranks 0-3, 8 on n1, n2`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    numbers = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    places = ", ".join(dict.fromkeys(hosts[rank] for rank in sorted(ranks)))
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {numbers} on {places}"
