#!/usr/bin/env python3
"""Draws delay against false alarms of the shipped rules and of plainer detectors: docs/pictures/factors.svg.

    scripts/frontier.py                 runs the judge (scripts/judge.sh --frontier), minutes
    scripts/frontier.py POINTS.jsonl    draws what such a run printed
"""
import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/pictures/factors.svg"
JUDGE = [ROOT / "scripts/judge.sh", "--frontier", "--hours", "4", "--seed", "3405"]
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 24, 52
# No false alarm at all is drawn at the left edge.
LEAST, MOST = 0.1, 10_000.0
SLOWEST = 120.0
COLOURS = {"rules, log": "#0b6e4f", "rules, loads": "#2f80c2", "sketch, log": "#d4a017", "max/mean": "#c2552f", "robust z": "#8a5bb5", "CUSUM": "#857a3a"}


def x_of(alarms):
    part = math.log(min(max(alarms, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def y_of(delay):
    return HEIGHT - BOTTOM - delay / SLOWEST * (HEIGHT - TOP - BOTTOM)


def text(x, y, words, anchor="middle", colour="#333"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def axes():
    for power in range(-1, 5):
        x = x_of(10.0**power)
        yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
        yield text(x, HEIGHT - BOTTOM + 18, f"{10.0**power:g}")
    for delay in range(0, int(SLOWEST) + 1, 20):
        y = y_of(delay)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
        yield text(LEFT - 8, y + 4, f"{delay}", "end")
    yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "false alarms a day and server, in healthy worlds from the second hour on")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})" fill="#333">median delay, s</text>'


def curve(method, points):
    points = sorted(points, key=lambda p: p["bound"])
    places = [(x_of(p["false_alarms_a_day"]), y_of(p["delay_s"])) for p in points]
    colour = COLOURS.get(method, "#555")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for (x, y), p in zip(places, points):
        title = f'{method} at {p["bound"]:g}: {p["false_alarms_a_day"]:g} a day, {p["delay_s"]:g} s, {p["found"]} of {p["of"]} found'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{title}</title></circle>'


def legend(methods):
    for i, method in enumerate(methods):
        y = TOP + 14 + 20 * i
        colour = COLOURS.get(method, "#555")
        yield f'<line x1="{WIDTH - RIGHT + 14}" y1="{y - 4}" x2="{WIDTH - RIGHT + 38}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>'
        yield text(WIDTH - RIGHT + 44, y, method, "start")


def draw(points):
    methods = list(dict.fromkeys(p["method"] for p in points))
    parts = [*axes()]
    for method in methods:
        parts += curve(method, [p for p in points if p["method"] == method])
    parts += legend(methods)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', *parts, "</svg>", ""])


def main():
    if len(sys.argv) > 1:
        lines = pathlib.Path(sys.argv[1]).read_text()
    else:
        lines = subprocess.run(JUDGE, check=True, text=True, stdout=subprocess.PIPE).stdout
    points = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    if not points:
        sys.exit("no points: expected lines of scripts/judge.sh --frontier")
    PICTURE.write_text(draw(points))
    print(f"{PICTURE.relative_to(ROOT)}: {len(points)} points")


if __name__ == "__main__":
    main()
