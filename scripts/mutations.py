#!/usr/bin/env python3
"""Breaks what windows, budgets and messages rest on, one piece at a time, and shows that a test sees it.

    scripts/mutations.py [WORD ...]      only those whose name has one of the words
    scripts/mutations.py --check         builds nothing: each text to change occurs exactly once (the gate asks this)

Each mutation is made in a copy of the last commit (target/mutations), and the tests that are named with it run
there. One that they do not see is printed as SURVIVED, and the exit status is 1; so is it where the text to change is
no longer found: then a mutation is to be written anew. Takes one to three minutes each on two cores.
"""
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
COPY = ROOT / "target/mutations/source"
CORE = ["-p", "skewtrap-core", "--lib", "capture::"]
SHELL = ["-p", "skewtrap", "--lib"]
SIMULATION = [*SHELL, "agent::simulation"]
MACHINE = "crates/core/src/capture/window/machine.rs"

# What is broken, where, the text there, what stands there instead, and the tests that must see it.
MUTATIONS = [
    ("no stop at the deadline", "crates/core/src/capture/window/machine/phases.rs",
     "if due && self.may_stop(now) {", "if false && self.may_stop(now) {", CORE),
    ("a refused connection ends a window", MACHINE,
     "if let Some(why) = self.dying.clone()", 'if let Some(why) = Some("refused".to_owned())', CORE),
    ("a stop while somebody else records", MACHINE,
     "            && !self.may_hold_another()\n            && self.ownership.foreign.open().is_none()\n", "", CORE),
    ("a second stop of vLLM", MACHINE,
     "let again = !self.engine.runs_vllm() || self.stops == self.undone;", "let again = true;", CORE),
    ("stops without end", MACHINE, "            && self.stops < MAX_STOPS\n", "", CORE),
    ("a 500 to a stop is taken for success", "crates/core/src/capture/window/machine/answers.rs",
     "            Answer::Ok => {\n                self.stop_granted = true;",
     "            Answer::Ok | Answer::Failed { .. } => {\n                self.stop_granted = true;", CORE),
    ("windows cost nothing of the day's budget", "crates/core/src/capture/governor.rs",
     "            stalled: sum.stalled.saturating_add(end.stalled),\n", "            stalled: sum.stalled,\n", CORE),
    ("the wall clock refills the day's windows", "crates/core/src/capture/governor.rs",
     "    if let Some(left) = full(&stamps, budget.windows, DAY, now) {",
     "    if let Some(left) = full(&stamps, budget.windows, DAY / 24, now) {", CORE),
    ("the start is sent before its attempt is written", "src/agent/window.rs",
     "    let begun = crate::world::blocking(move || state.begin(&attempt, &window, Some(&record))).await;\n"
     "    begun.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;\n",
     "    drop(crate::world::blocking(move || state.begin(&attempt, &window, Some(&record))));\n", SIMULATION),
    ("the stops that were sent are not written", "src/agent/window/run.rs",
     "            (shared.open.stops, shared.open.ended) = (stops, ended);\n",
     "            (shared.open.stops, shared.open.ended) = (stops, ended);\n            return;\n", [*SHELL, "agent::window::run"]),
    ("nobody asks which instance took the start", "src/agent/window/run.rs",
     "            self.identify(at + IDENTIFY_LIMIT).await;\n", "", SIMULATION),
    ("a message is handed over before its row is written", "src/agent/notifier/outgoing.rs",
     "            number\n        };\n        let inner = self.0.clone();\n        state.later(move |state| {\n            let written",
     "            number\n        };\n        let inner = self.0.clone();\n        inner.hand_over(true, |batch| batch.number <= number);\n"
     "        state.later(move |state| {\n            let written", [*SHELL, "agent::notifier"]),
]


def sources():
    """The last commit's files; only what differs is written, so that little is compiled anew."""
    COPY.mkdir(parents=True, exist_ok=True)
    archive = subprocess.Popen(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
    fresh = COPY.parent / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    subprocess.run(["tar", "x", "-C", fresh], stdin=archive.stdout, check=True)
    wanted = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
    for path in [path for path in COPY.rglob("*") if path.is_file()]:
        name = path.relative_to(COPY)
        if name not in wanted and name.parts[0] != "target":
            path.unlink()
    for name in wanted:
        there = COPY / name
        if not there.is_file() or there.read_bytes() != (fresh / name).read_bytes():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(fresh / name, there)
    shutil.rmtree(fresh)


def is_there_once(name, file, old):
    """Whether the working tree has the text to change exactly once."""
    path = ROOT / file
    count = path.read_text().count(old) if path.is_file() else 0
    if count != 1:
        print(f"{name}: {file} has the text to change {count} times, not once; write this mutation anew:\n{old}")
    return count == 1


def tests_fail(tests):
    command = ["cargo", "test", "--locked", *tests]
    done = subprocess.run(command, cwd=COPY, capture_output=True, text=True)
    if done.returncode and "test result: FAILED" not in done.stdout:
        sys.exit(f"the mutation does not compile:\n{done.stderr[-3000:]}")
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("test ") and line.endswith("FAILED")]
    return failed


def main():
    words = sys.argv[1:]
    if words == ["--check"]:
        found = [is_there_once(name, file, old) for name, file, old, _, _ in MUTATIONS]
        return 0 if all(found) else 1
    sources()
    survived = 0
    for name, file, old, new, tests in MUTATIONS:
        if words and not any(word in name for word in words):
            continue
        path, began = COPY / file, time.monotonic()
        text = path.read_text()
        if text.count(old) != 1:
            sys.exit(f"{name}: {file} has the text to change {text.count(old)} times:\n{old}")
        path.write_text(text.replace(old, new))
        try:
            failed = tests_fail(tests)
        finally:
            path.write_text(text)
        seen = f"seen by {len(failed)}: {failed[0]}" if failed else "SURVIVED"
        survived += not failed
        print(f"{name:52} {seen} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
