#!/usr/bin/env bash
# Builds the book (docs/) into target/book. The pages are readable as they are; two of them lie beside what
# they describe (rules/, deploy/), and are copied into the book here.
#
#   scripts/book.sh [MDBOOK]        MDBOOK: the program, by default `mdbook`
set -euo pipefail
cd "$(dirname "$0")/.."
mdbook=${1:-mdbook}
staged=target/book-source
rm -rf "$staged" target/book
mkdir -p target
cp -r docs "$staged"
cp rules/README.md "$staged/rules.md"
cp deploy/README.md "$staged/deployment.md"
# Links between those pages and the rest of the book; what else a page links to in the repository has no page,
# and is named without a link.
python3 - "$staged" <<'PYTHON'
import os, re, sys
root = sys.argv[1]
moved = {"rules/README.md": "rules.md", "deploy/README.md": "deployment.md"}
home = {"rules.md": "rules", "deployment.md": "deploy"}
for folder, _, files in os.walk(root):
    for name in files:
        if not name.endswith(".md"):
            continue
        path = os.path.join(folder, name)
        page = os.path.relpath(path, root)
        # Where the page lies in the repository, and where in the book.
        original = home.get(page, os.path.join("docs", os.path.dirname(page)))
        here = os.path.dirname(page)
        def linked(match):
            text, target = match.groups()
            if re.match(r"[a-z]+:|#|<", target):
                return match.group(0)
            file, _, anchor = target.partition("#")
            there = os.path.normpath(os.path.join(original, file))
            anchor = "#" + anchor if anchor else ""
            if there in moved:
                found = moved[there]
            elif there.startswith("docs/"):
                found = os.path.relpath(there, "docs")
            else:
                return text[1:-1]
            return f"{text}({os.path.relpath(found, here or '.')}{anchor})"
        text = open(path).read()
        open(path, "w").write(re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", linked, text))
PYTHON
"$mdbook" build "$staged" --dest-dir "$PWD/target/book" 2>&1 | tee target/book.log
if grep -qiE '\b(warn|error)' target/book.log; then
  echo "the book has warnings" >&2
  exit 1
fi
# Every link between its pages leads to a page.
python3 - target/book <<'PYTHON'
import os, re, sys, html
root, wrong, links = sys.argv[1], [], 0
for folder, _, files in os.walk(root):
    for name in files:
        if not name.endswith(".html") or name in ("print.html", "404.html", "toc.html"):
            continue
        path = os.path.join(folder, name)
        main = re.search(r"<main>(.*?)</main>", open(path).read(), re.S)
        for target in re.findall(r'(?:href|src)="([^"#]+)', main.group(1) if main else ""):
            target = html.unescape(target)
            if re.match(r"[a-z]+:", target):
                continue
            links += 1
            if not os.path.exists(os.path.normpath(os.path.join(folder, target))):
                wrong.append(f"{os.path.relpath(path, root)}: {target}")
if wrong:
    sys.exit("links that lead nowhere:\n" + "\n".join(wrong))
print(f"the book: {links} links between its pages, all right")
PYTHON
