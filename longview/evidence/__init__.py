"""What is made of evidence: the deletion check, and files of both.

    Engine.answer(…, evidence=True) ── Answer.evidence ─┬── deletion.check: is it true? ──┐
                                                        └─────────────────────────────────┴── report.write

`longview.answer_evidence` has the data, and `longview.engine.evidence` makes it. Nothing is imported here, so that a
file's name is checked before torch is there.
"""
