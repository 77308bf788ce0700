"""`%explain`: what the last error of this notebook comes from; `%explain name` for an exception or a text you keep."""

from typing import Any

from helpers.troubleshooting.explanation import Explanation, explain


def load_ipython_extension(shell: Any) -> None:
    """Add `%explain` to IPython: `%load_ext helpers.troubleshooting`."""

    def line_magic(line: str) -> Explanation:
        """Explain the last error, or what a name or an expression stands for."""
        return explain(shell.ev(line) if line.strip() else None)

    def cell_magic(line: str, cell: str) -> Explanation:
        """Explain the text of the cell: paste a traceback or a log into it."""
        return explain(cell)

    def both(line: str, cell: str | None = None) -> Explanation:
        return line_magic(line) if cell is None else cell_magic(line, cell)

    shell.register_magic_function(both, magic_kind="line_cell", magic_name="explain")
