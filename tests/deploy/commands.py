"""Checks that every command of the pages was run, those of `sh` blocks and those in the text.

    commands.py script PAGE              prints the `sh` blocks as one script, each with its line
    commands.py judge ROOT RECORD        fails if a command was neither run nor marked

A block that cannot be run follows `<!-- not run: REASON -->`, and is listed with its reason. RECORD
has a line for each run of our programs: the program and its arguments.
"""

import pathlib
import re
import shlex
import sys

# First words of a line that make it a command.
PROGRAMS = (
    "cache-coordinator cache-edge chunkcache-origin curl psql pg_dump pg_restore createdb "
    "systemctl docker kubectl helm cargo openssl"
).split()
# Written from the code; how to develop; and what a page of its own test runs
# (tests/tests/examples.rs).
LEFT_OUT = {"cli.md", "configuration.md", "api.md"}
# Commands in the text that no page can run, with the reason.
NOT_RUN = {
    ("docker", "compose"): "needs a container engine: tests/deploy/containers",
    ("cache-coordinator", "serve"): "run, with other options",
    ("cache-edge", "serve"): "run, with other options",
    ("cache-coordinator", "edge", "forget"): "needs a lost edge: tests/tests/scheduling.rs",
}


def blocks(text):
    """(line, language, lines, reason why it is not run)."""
    found, lines = [], text.splitlines()
    at = 0
    while at < len(lines):
        if lines[at].startswith("```"):
            marked = re.fullmatch(r"<!-- not run: (.+) -->", lines[at - 1]) if at else None
            end = at + 1
            while not lines[end].startswith("```"):
                end += 1
            found.append((at + 1, lines[at][3:].strip(), lines[at + 1 : end], marked and marked[1]))
            at = end
        at += 1
    return found


def script(page):
    print("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT")
    print("set -euo pipefail")
    for line, language, lines, reason in blocks(page.read_text()):
        if language != "sh" or reason:
            continue
        print(f'echo "== line {line}"')
        for command in lines:
            if command.startswith("cache-coordinator serve "):
                print(
                    '[ -z "${served_7401:-}" ] || { kill "$served_7401" && wait "$served_7401"; } '
                    '2>/dev/null || true'
                )
            print(command)
            # Like a reader who checks that it came up, and who stopped the previous server on the
            # same port.
            if serve := re.match(r"cache-(coordinator|edge) serve .*[^2]&$", command):
                port = "7401" if serve[1] == "coordinator" else "7501"
                print(f"came_up {port}; served_{port}=$!")


def words_and_options(words):
    """The verbs of one of our commands, and its options."""
    verbs = []
    for word in words[1:]:
        if not re.fullmatch("[a-z][a-z-]*", word):
            break
        verbs.append(word)
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    return (words[0], *verbs), options


def judge(root, record):
    ran = []
    for line in record.read_text().splitlines():
        ran.append(words_and_options(shlex.split(line)))
    pages = [page for page in sorted((root / "docs").glob("*.md")) if page.name not in LEFT_OUT] + [
        root / "README.md"
    ]
    problems, told, counted = [], [], 0
    for page in pages:
        name, text = page.relative_to(root), page.read_text()
        for line, language, lines, reason in blocks(text):
            first = [re.split(r"[\s/]", command.strip())[0] for command in lines if command.strip()]
            is_command = any(
                word in PROGRAMS or word in ("deploy", "tests", "target", "examples")
                for word in first
            )
            if reason:
                told.append(f"{name}:{line} is not run: {reason}")
            elif is_command and language != "sh":
                problems.append(
                    f"{name}:{line}: commands that are not run: make it an `sh` block, or say why "
                    f"not above it"
                )
            elif language == "sh":
                counted += len([word for word in first if not word.startswith("#")])
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        for span in re.findall(r"`([^`\n]+)`", prose):
            words = span.replace("…", "").replace("...", "").split()
            if len(words) < 2 or words[0] not in PROGRAMS or words[0] in ("cargo", "openssl"):
                continue
            # Verbs end where a placeholder or an object begins.
            verbs, options = words_and_options(words)
            excused = next(
                (why for start, why in NOT_RUN.items() if verbs[: len(start)] == start), None
            )
            fits = [found for done, found in ran if done[: len(verbs)] == verbs]
            if excused:
                told.append(f"{name}: `{span}`: {excused}")
            elif not fits:
                problems.append(f"{name}: `{span}` was not run")
            elif missing := options - set().union(*fits):
                problems.append(f"{name}: `{span}` was not run with {', '.join(sorted(missing))}")
            else:
                counted += 1
    print(
        "\n".join(problems)
        if problems
        else "\n".join([f"{counted} commands run or seen run", *sorted(set(told))])
    )
    return bool(problems)


if sys.argv[1] == "script":
    script(pathlib.Path(sys.argv[2]))
else:
    sys.exit(judge(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])))
