"""Measurements as a table that a person reads."""

_ROWS = {
    "cls": "class head",
    "dist": "distillation head",
    "fused": "fusion",
    "artefact": "artefact",
}


def table(student, teacher=None):
    """One row for the teacher, and one for each head of the student and for their fusion.

    Args:
      student: what `distiller.measure` answered, or `export.evaluate`.
      teacher: the same of the teacher, or None.

    Returns:
      A text of several lines: top-1, top-5, loss in nats.
    """
    rows = {} if teacher is None else {"teacher": teacher["cls"]}
    rows |= {name: student[head] for head, name in _ROWS.items() if head in student}
    if "dist" not in student:
        rows.pop("fusion", None)
    title = f"on {student['images']} images"
    lines = [f"{title:<20}{'top-1':>9}{'top-5':>9}{'loss':>9}"]
    for name, row in rows.items():
        lines.append(f"{name:<20}{row['top1']:>9.2%}{row['top5']:>9.2%}{row['loss']:>9.4f}")
    return "\n".join(lines)
