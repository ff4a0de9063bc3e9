"""What is made of evidence: the deletion check, and the files that show both.

    Engine.answer(…, evidence=True) ── Answer.evidence ─┬── deletion: is it true? ──┐
                                                        └───────────────────────────┴── report: a file of it

`longview.answer_evidence` has the data, and `longview.engine.evidence` makes it.
"""

from longview.evidence.deletion import Deletion, acheck, check

__all__ = ["Deletion", "acheck", "check"]
