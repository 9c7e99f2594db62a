"""`invdiff report FOLDER format=latex,csv`: the tables of a benchmark as table.tex and table.csv."""

import sys
from pathlib import Path

USAGE = """usage: invdiff report FOLDER [format=latex,csv]

  invdiff report out                   table.tex (booktabs) and table.csv beside results.parquet of `invdiff benchmark`
  invdiff report out format=latex      table.tex alone"""
FILES = {"latex": "table.tex", "csv": "table.csv"}


def main() -> None:
    """Write the tables of a finished or interrupted benchmark; raises ValueError for a folder that holds none."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return
    given = [word.partition("=")[2] for word in words if word.startswith("format=")]
    folders = [word for word in words if not word.startswith("format=")]
    formats = (given[-1] if given else ",".join(FILES)).strip("[]").split(",")
    unknown = [name for name in formats if name not in FILES]
    if unknown:
        raise ValueError(f"format must be one or several of {', '.join(FILES)}, got {unknown[0]}")
    if len(folders) != 1:
        raise ValueError(f"give one folder of invdiff benchmark, got {' '.join(folders) or 'none'}")
    from invdiff.benchmark.store import Store
    from invdiff.benchmark.summary import summarise
    from invdiff.io.atomic import write_atomically
    from invdiff.report.exports import in_csv, in_latex

    folder = Path(folders[0])
    if not (folder / "results.parquet").exists():
        raise ValueError(f"{folder} must be a folder of invdiff benchmark; it has no results.parquet")
    comparisons = summarise(Store(folder))
    for name in formats:
        text = in_latex(comparisons) if name == "latex" else in_csv(comparisons)
        write_atomically(folder / FILES[name], text.encode())
        print(folder / FILES[name])
