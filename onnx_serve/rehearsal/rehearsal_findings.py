"""What a rehearsal has found, gathered while it runs."""

import threading
from dataclasses import dataclass

from onnx_serve.rehearsal.rehearsal_rules import RULES, Rule, Severity

__all__ = ["Finding", "Findings"]

_SEVERITIES: tuple[Severity, ...] = ("fails", "corrupts", "warns")
_DETAIL_LENGTH = 300


@dataclass(slots=True)
class Finding:
    """One rule that was broken.

    Attributes:
        name: The rule's, in ``RULES``.
        severity: The rule's own, or a graver one where the job makes it so.
        where: The first place.
        detail: What came there.
        count: In how many places.
    """

    name: str
    severity: Severity
    where: str
    detail: str
    count: int = 1

    @property
    def rule(self) -> Rule:
        """What was broken."""
        return RULES[self.name]

    def to_json(self) -> dict[str, str | int]:
        """The finding with its rule, as one flat object."""
        rule = self.rule
        return {
            "name": self.name,
            "severity": self.severity,
            "where": self.where,
            "detail": self.detail,
            "count": self.count,
            "why": rule.why,
            "fix": rule.fix,
            "basis": rule.basis,
            "source": rule.url,
        }


class Findings:
    """Collects findings, one a rule. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, Finding] = {}

    def add(self, name: str, where: str, detail: str = "", severity: Severity | None = None) -> None:
        """Notes that a rule was broken once more.

        Args:
            name: The rule's.
            where: The place: a file and request, or a resource.
            detail: What came; cut after 300 characters.
            severity: A graver one than the rule's own.
        """
        grave = severity or RULES[name].severity
        with self._lock:
            known = self._by_name.get(name)
            if known is None:
                self._by_name[name] = Finding(name, grave, where, detail[:_DETAIL_LENGTH])
                return
            known.count += 1
            known.severity = min(known.severity, grave, key=_SEVERITIES.index)

    @property
    def all(self) -> list[Finding]:
        """The findings, the gravest first."""
        with self._lock:
            return sorted(self._by_name.values(), key=lambda finding: _SEVERITIES.index(finding.severity))

    def __contains__(self, name: str) -> bool:
        """Whether a rule was broken."""
        return name in self._by_name
