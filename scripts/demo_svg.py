#!/usr/bin/env python3
"""Draws the demo as it looks in a terminal: docs/pictures/demo.svg, from the output of the program.

    scripts/demo_svg.py [SKEWTRAP]      the program, by default target/release/skewtrap

Text is text, so the picture can be read aloud and searched. Only the standard library.
"""
import html
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLUMNS, LINE, WIDTH, PAD = 108, 17, 7.83, 18
COLOURS = {"31": "#ff7b72", "32": "#7ee787", "33": "#e3b341", "36": "#79c0ff", "90": "#8b949e"}


def output(program):
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [program, "demo", "--color", "always", "--out", "skewtrap-demo"],
            cwd=folder, check=True, capture_output=True, text=True,
        )
        return run.stdout.replace(str(pathlib.Path(folder).resolve()) + "/", "")


def wrapped(line):
    """Pieces of at most COLUMNS visible characters, cut at spaces, colours kept."""
    lines, column, current = [], 0, ""
    for word in re.split(r"(?<= )", line):
        length = len(re.sub(r"\x1b\[[0-9;]*m", "", word))
        if column + len(word.rstrip()) > COLUMNS and column > 12:
            lines.append(current)
            current, column = " " * 12, 12
        current += word
        column += length
    return lines + [current]


def spans(line, state):
    parts = []
    for text, codes in re.findall(r"([^\x1b]*)(?:\x1b\[([0-9;]*)m)?", line):
        if text:
            style = ""
            if state["colour"]:
                style += f' fill="{state["colour"]}"'
            if state["bold"]:
                style += ' font-weight="700"'
            parts.append(f"<tspan{style}>{html.escape(text, quote=False)}</tspan>")
        for code in (codes or "").split(";") if codes is not None else []:
            if code in ("0", ""):
                if codes:
                    state.update(colour=None, bold=False)
            elif code == "1":
                state["bold"] = True
            elif code in COLOURS:
                state["colour"] = COLOURS[code]
    return "".join(parts)


def main():
    program = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/skewtrap").resolve()
    # On a busy machine, ten times real time may be too fast for the story to be told.
    for _ in range(3):
        text = output(program)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        if "one window is opened" in plain and "  verdict " in plain:
            break
    else:
        sys.exit("the demo took no window three times; is this machine very busy?")
    # The story, without the list of files after it.
    text = text.split("\nWhat is stored:")[0].rstrip("\n")
    # Most of the quiet lines at the beginning look alike.
    lines = [piece for line in ["$ skewtrap demo", ""] + text.split("\n") for piece in wrapped(line)]
    height = PAD * 2 + LINE * len(lines) + 8
    width = round(PAD * 2 + COLUMNS * WIDTH)
    state = {"colour": None, "bold": False}
    rows = "".join(
        f'<text x="{PAD}" y="{PAD + LINE * (n + 1)}" xml:space="preserve">{spans(line, state)}</text>\n'
        for n, line in enumerate(lines)
    )
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">'
        "<title>skewtrap demo in a terminal</title>"
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>'
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13" fill="#e6edf3">\n'
        f"{rows}</g></svg>\n"
    )
    target = ROOT / "docs/pictures/demo.svg"
    target.parent.mkdir(exist_ok=True)
    target.write_text(picture)
    print(f"{target.relative_to(ROOT)}: {len(lines)} lines")


main()
