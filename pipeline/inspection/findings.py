"""What a check of a copy found, and how it is told."""

from dataclasses import dataclass, field

from dclip.store.paths import AnyPath
from dclip.words import counted


@dataclass
class Findings:
    """What a check found, in the order it looked.

    Attributes:
        lines: Kind (``ok``, ``note``, ``problem`` or ``remedy``), split (empty: all of them),
            and what was found.
        files: Whether a file that is expected is there, where, and what it is.
    """

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def add(self, kind: str, split: str, text: str) -> None:
        """Keep one finding."""
        self.lines.append((kind, split, text))

    @property
    def problems(self) -> list[str]:
        """Texts of the problems."""
        return [text for kind, _, text in self.lines if kind == "problem"]


def shown(name: str, root: AnyPath | None, findings: Findings) -> str:
    """Findings, a split after the other, and the files that are expected."""
    lines = [f"{name} at {root}" if root is not None else name]
    seen = ""
    for kind, split, text in findings.lines:
        if split != seen:
            lines.append(f"  {split or 'all splits'}:")
            seen = split
        word = kind.upper() if kind in ("problem", "remedy") else kind
        lines.append(f"    {word:8}{text}")
    if findings.files:
        lines += ["  files that are expected:", *(f"    {line}" for line in findings.files)]
    count = len(findings.problems)
    lines.append(f"  {counted(count, 'problem')}" if count else "  no problem found")
    return "\n".join(lines)
