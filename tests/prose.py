"""
Looks for words that this project does not use in its prose: ``python -m tests.prose [FILE ...]``, ``.ci/run`` does.

Documentation is read whole; of Python files only comments, strings and the names of tests are. The list holds private
metaphors that once stood for the field's terms (docs/glossary.rst has these), and turns of phrase that hide the subject
of a sentence.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

#: What is looked for, without regard to case, and what to write instead.
WORDS: Mapping[str, str] = {
    r"nobody|somebody|whoever": "name the subject: the client, a user, an operator",
    r"for ever": "'indefinitely', 'without a limit', or the time",
    r"hears? of|tells? of|bears?": "'receives', 'reports', 'has'",
    r"(?<!there )(?<!that )(is|are|was|were) no "
    r"(?!longer|more|less|fewer|later|earlier|such|other|matter|one\b|\w+er\b)\w+": "'is not a …'",
    r"burials?|bury|buried|mourn\w*|ghosts?|the dead|dead services?|doomed": "'expired', or the name of what ends",
    r"pulses?|beaters?|the beat|beats": "'heartbeat', 'HeartBeater'",
    r"fleets?": "'services', 'instances', 'nodes'",
    r"enrol\w*|strangers?": "'register'; 'unauthenticated clients'",
    r"benched|passed over": "'cooldown', 'ejected', 'skipped'",
    r"travel(s|ling)? together": "'are batched'",
    # With a capital letter, as at the beginning of a sentence; not a question, or the heading "What to do".
    r"(?-i:Who|Whoever|What|Whatever|Where)(?= (?!to do$|are you)[a-z])": "a noun: the client, the data, 'If …'",
}
_WORDS = re.compile("|".join(rf"(?P<w{i}>\b(?:{word})\b)" for i, word in enumerate(WORDS)), re.IGNORECASE)

#: Words that stand for something else in a file, each with the reason.
EXCEPTIONS: Mapping[str, Mapping[str, str]] = {
    "tests/prose.py": {".*": "the list itself"},
    "tests/system/commands/test_privileges.py": {"nobody": "the Unix user"},
    "tests/system/faults/attackers.py": {"nobody": "the name of a user that does not exist"},
}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that hold prose, by number. The name of a test is one of them, in words."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in kinds:
                yield from enumerate(token.string.splitlines(), token.start[0])
            elif token.type == tokenize.NAME and re.match(r"test_|[A-Z]\w*Tests$", token.string):
                yield token.start[0], re.sub(r"(?<=[a-z])(?<!Heart)(?=[A-Z])|_", " ", token.string).lower()


def findings(paths: Iterable[Path]) -> Iterator[str]:
    """A line for each word that should not be there: the file, the line's number, the word, and what to write."""
    for path in paths:
        allowed = EXCEPTIONS.get(str(path), {})
        for number, line in prose(path):
            for match in _WORDS.finditer(line):
                if not any(re.fullmatch(word, match[0], re.IGNORECASE) for word in allowed):
                    advice = list(WORDS.values())[int(str(match.lastgroup)[1:])]
                    yield f"{path}:{number}: '{match[0]}': write {advice}"


def main(names: list[str]) -> int:
    """:return: the exit code: 1 if there are findings."""
    if not names:
        listed = subprocess.run(
            ["git", "ls-files", "*.py", "*.rst", "*.dot", "*.md", "*.yaml", "*.yml", "*.html", "*.js", "Dockerfile"],
            check=True,
            capture_output=True,
            text=True,
        )
        names = listed.stdout.split()
    found = list(findings(map(Path, names)))
    print("\n".join(found) or f"{len(names)} files, no such words")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
