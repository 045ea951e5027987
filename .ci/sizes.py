"""No file above 400 lines and no function above 80: `python .ci/sizes.py FILE…` names those that are, and fails."""

import ast
import sys
from pathlib import Path

FILE, FUNCTION = 400, 80


def too_long(path: Path) -> list[str]:
    """A line for the file, and for every function in it, that is longer than allowed."""
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    found = [f"{path}: {lines} lines; a file has {FILE} at most"] if lines > FILE else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines; a function has {FUNCTION} at most")
    return found


if __name__ == "__main__":
    told = [line for name in sys.argv[1:] for line in too_long(Path(name))]
    print("\n".join(told), end="\n" if told else "")
    sys.exit(bool(told))
