"""Checks that every command and option that the pages name exists in the programs and scripts, and
that every file exists.

pages.py ROOT DIRECTORY_OF_THE_PROGRAMS
"""

import functools
import pathlib
import re
import subprocess
import sys

root, programs = map(pathlib.Path, sys.argv[1:3])
# The pages of commands and options are generated, and the RFCs describe the state of their time.
written = {"cli.md", "configuration.md", "api.md"}
pages = [page for page in sorted((root / "docs").glob("*.md")) if page.name not in written]
pages += [
    root / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "examples/README.md",
        "deploy/helm/chunk-cache/templates/NOTES.txt",
    )
]
# Options of other people's programs.
others = set(
    "--build --profile --locked --bins --release --rm --retry --retry-connrefused --retry-delay "
    "--workspace --namespace --set --example --bench --from-file --file --format --clean "
    "--if-exists --dbname".split()
)


@functools.cache
def help_of(*words):
    """The help of this command, or nothing."""
    done = subprocess.run(
        [programs / words[0], *words[1:], "--help"], capture_output=True, text=True, timeout=30
    )
    return done.stdout if done.returncode == 0 else ""


def verbs_below(words):
    listed = re.search(r"^Commands:\n(.*?)(?:\n\n|\Z)", help_of(*words), flags=re.M | re.S)
    names = re.findall(r"^  ([a-z-]+)", listed[1], flags=re.M) if listed else []
    return [name for name in names if name != "help"]


def all_help(words):
    return help_of(*words) + "".join(all_help((*words, name)) for name in verbs_below(words))


ours = {name: all_help((name,)) for name in ("cache-coordinator", "cache-edge")}
scripts = "".join(
    path.read_text(errors="ignore")
    for folder in (
        "deploy",
        "tests/deploy",
        "tests/bench",
        "tests/faults",
        "tests/src/bin",
        "tests/src/campaign",
        "tests/run",
        "examples",
        "cache-coordinator/benches",
        "cache-edge/benches",
    )
    for path in (
        [root / folder] if (root / folder).is_file() else sorted((root / folder).rglob("*"))
    )
    if path.is_file()
    and path.suffix not in (".json", ".md", ".png", ".txt")
    and "work" not in path.relative_to(root).parts
)
problems, commands, options, files = [], 0, 0, 0

for page in pages:
    text = page.read_text()
    name = page.relative_to(root)
    blocks = re.findall(r"^```(?:text|sh)\n(.*?)^```", text, flags=re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = (
        inline
        + [line for block in blocks for line in block.splitlines()]
        + ([] if page.suffix == ".md" else text.splitlines())
    )
    for line in lines:
        if line.startswith("cargo "):
            continue
        for program, rest in re.findall(
            r"(?:^|[ /(])(cache-coordinator|cache-edge)((?: [^ |)#;]+)*)", line.split(" # ")[0]
        ):
            words, rest = (program,), rest.split()
            while rest and verbs_below(words):
                if rest[0] not in verbs_below(words):
                    break
                words, rest = (*words, rest[0]), rest[1:]
            # A word in the place of a verb that is not a verb.
            if (
                rest
                and verbs_below(words)
                and re.fullmatch("[a-z][a-z-]+", rest[0])
                and len(rest) + len(words) > 1
                and not line.startswith("systemctl")
            ):
                problems.append(
                    f"{name}: `{line.strip()}`: {rest[0]} is no command of {' '.join(words)}"
                )
            commands += 1
            for option in re.findall(r"(?:^| )(--[a-z][a-z0-9-]+)", " ".join(rest)):
                if not re.search(rf"{option}\b(?!-)", help_of(*words)) and not re.search(
                    rf"{option}\b(?!-)", ours[program]
                ):
                    problems.append(f"{name}: `{line.strip()}`: {' '.join(words)} has no {option}")
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]\b", text):
        options += 1
        exact = re.compile(rf"(?<![\w-]){option}(?![\w-])")
        if option not in others and not any(
            exact.search(known) for known in (*ours.values(), scripts)
        ):
            problems.append(f"{name}: nothing has the option {option}")
    named = {page.parent / target for target in re.findall(r"\]\(([\w./-]+)\)", text)}
    for target in re.findall(
        r"`((?:deploy|tests|docs|crates|proto|cache-edge|cache-coordinator|examples)/[\w./-]+)`",
        text,
    ):
        named.add(root / target)
    for target in named:
        files += 1
        if not target.exists() and not target.with_suffix(".rs").exists():
            problems.append(
                f"{name}: {target.relative_to(root) if target.is_relative_to(root) else target} "
                f"is not there"
            )

print(
    "\n".join(problems)
    or f"{len(pages)} pages: {commands} commands, {options} options, {files} files"
)
sys.exit(bool(problems))
