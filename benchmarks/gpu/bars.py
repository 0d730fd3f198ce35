"""What the project has to reach on a GPU, beside what was measured."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from timing import Row

Sections = Mapping[str, Sequence[Row]]


def bars(sections: Sections) -> list[Row]:
    """One row per bar: what was asked, what was measured, whether it was met; None where nothing was measured.

    Args:
        sections: name -> its rows; missing or short where a section failed.
    """
    steps, adam, decoding = (sections.get(name, ()) for name in ("steps", "optimizers", "decoding"))
    proofs = [row for row in sections.get("memory", ()) if row["share GB"] is not None]
    fitting = [row["reserved GB"] for row in proofs if row["fits"]]
    found = [_bar("LoRA-8bit of 7B within, GB", 8.9, min(fitting, default=None), largest=True)]
    if proofs and not fitting:
        found[0]["met"] = False  # it was tried, and did not fit
    for setting in dict.fromkeys(row["setting"] for row in steps):
        int8 = [
            row
            for row in steps
            if row["setting"] == setting and row["outliers"] and row["what"].startswith("ours int8")
        ]
        for column, bound in (("÷ ours bf16", 1.0), ("÷ bitsandbytes", 0.5)):
            best = _best(int8, column, min)
            found.append(_bar(f"step of LoRA-8bit, {setting}, 6 outliers, {column}", bound, best, largest=True))
    for case in dict.fromkeys(row["case"] for row in adam if row["case"].startswith("1B")):
        rows = [row for row in adam if row["case"] == case and row["what"].startswith("ours")]
        found.append(_bar(f"AdamW8bit, {case}, of copy bandwidth", 0.8, _best(rows, "of copy", max), largest=False))
    for what in dict.fromkeys(row["what"] for row in decoding if row["what"].startswith("ours")):
        rows = [row for row in decoding if row["what"] == what]
        found.append(_bar(f"decoding, {what}, of limit", 0.8, _best(rows, "of limit", max), largest=False))
    return found


def _best(rows: Iterable[Row], column: str, choose: Callable[..., float | None]) -> float | None:
    return choose((row[column] for row in rows if row[column] is not None), default=None)


def _bar(bar: str, bound: float, measured: float | None, *, largest: bool) -> Row:
    """largest: whether the bound is the largest good value, not the smallest."""
    met = None if measured is None else measured <= bound if largest else measured >= bound
    return {"bar": bar, "bound": f"{'≤' if largest else '≥'} {bound}", "measured": measured, "met": met}
