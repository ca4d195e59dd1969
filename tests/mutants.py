"""How many small faults of the compiled core the tests find: `python tests/mutants.py`, from a checkout.

A mutant is one statement of src_pyx with one change: a comparison flipped, a term dropped, a bound off by one. All of
them are compiled at once, into a copy of the checkout: each changed statement asks the global number MUTANT which of
its forms to take. Then a process is forked for every mutant and runs the tests that reach the statement, until one
fails, crashes or hangs. An hour or two for the default count.

docs/mutants.md lists those that are known to change no result; of the others, fewer than 95 % killed is a failure.
"""

import argparse
import collections
import hashlib
import json
import mmap
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest.runner import runtestprotocol

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = ("dense", "elementwise", "engine", "losses", "network", "optim", "random", "threads")
PATH = "avx2"  # whose bits the tests have hashes of; one path only, as all are compiled from one body
OTHER_PATHS = re.compile("baseline|avx512")  # in the name of a test that needs another
# The other files train for minutes, and find less.
TESTS = ("kernels", "engine", "cases", "optimizers", "losses_in_training", "gradients", "training", "conventions",
         "reference", "errors", "bits", "memory", "processes")
QUICK = 0.1  # seconds; such tests come first, of all files
PATIENCE = 120  # seconds, and ten times what the test takes without a mutant: then it hangs
ATTEMPTS = 12  # to compile, with fewer mutants each time
ENOUGH = 95  # % killed of those that can change a result
EQUIVALENTS = CHECKOUT / "docs" / "mutants.md", "\n## Those that change no result\n"  # with a reason each

# They ask for cache lines before their turn, and no result can tell whether they came.
FETCHING = {"fetch_nothing", "addresses_of", "add_addresses", "fetch_ahead", "place_rows"}
FETCHES = re.compile(r"(self\.)?(prefetch|prefetch_close|fetch_nothing|add_addresses|fetch_ahead)\(|ahead = "
                     r"|if (fetching|self\.streamed):|self\.(n_next|streamed) = |self\.place_rows\(")
# How many rows are a unit, and how often the clock is read: any number gives the same bits, only later or sooner.
SIZES = re.compile(r"self\.(row_block|claims_a_check|next_check) = ")
MEASURES = {"call_fma_loop"}  # the machine's peak for the benchmarks: what it sums is thrown away

CLOSING, OPENING = set(")]}"), set("([{")
COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
SWAPS = {"+": "-", "-": "+", "*": "+", "+=": "-=", "-=": "+=", "and": "or", "or": "and", "True": "False",
         "False": "True", "min": "max", "max": "min", ">>": "<<", "^": "|"}
NUMBERS = {"0": ["1"], "1": ["0", "2"], "2": ["1", "3"]}
KEYWORDS = {"if", "else", "and", "or", "not", "in", "is", "return", "elif", "while"}
END_OF_TERM = set(COMPARISONS) | CLOSING | KEYWORDS | {"+", "-", ",", "=", ":", "<<", ">>", "&", "|", "^"}
END_OF_CONDITION = CLOSING | {"and", "or", "if", "else", ",", ":"}
NO_STATEMENTS = re.compile(r"cdef (enum|struct|extern)|ctypedef ")  # what is indented below them declares

CHOOSING = """
cdef int MUTANT = atoi(getenv("FASTOPT_MUTANT")) if getenv("FASTOPT_MUTANT") != NULL else 0
cdef char REACHED[10000]

cdef inline bint is_on(int number) noexcept nogil:
    REACHED[number] = 1
    return MUTANT == number

def set_mutant(int number):
    global MUTANT
    MUTANT = number

def reached():
    marks = REACHED[:10000]
    memset(REACHED, 0, 10000)
    return marks

"""


class Statement(NamedTuple):
    file: str
    lines: range  # from 0
    indent: str
    text: str  # on one line
    tokens: list[tuple[str, int]]  # and where each begins
    function: str
    name: str  # file.function, numbered where it has the same statement again


class Mutant(NamedTuple):
    statement: Statement
    start: int  # of the expression that changes, or of the whole statement
    stop: int
    changed: str

    def text(self) -> str:
        text = self.statement.text
        return text[: self.start] + self.changed + text[self.stop :]

    def key(self) -> str:
        """What stays when other lines of the file change."""
        return f"{self.statement.name}: `{self.statement.text}` → `{self.text()}`"


def statements(file: str, source: Path):
    """The statements below the declarations."""
    with tokenize.open(source) as lines:
        rows = list(tokenize.generate_tokens(lines.readline))
    text, tokens, first, end, function, declaring = "", [], None, None, "", None
    seen = collections.Counter()
    for token in rows:
        if token.type in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT):
            continue
        if token.type != tokenize.NEWLINE:
            first = first or token.start
            if end:
                text += " " * (token.start[1] - end[1] if token.start[0] == end[0] else text[-1] not in OPENING)
            tokens.append((token.string, len(text)))
            text, end = text + token.string, token.end
            continue
        indent = first[1]
        if declaring is not None and indent <= declaring:
            declaring = None
        if NO_STATEMENTS.match(text) and text.endswith(":"):
            declaring = indent if declaring is None else declaring
        elif re.match("cp?def |def ", text) and text.endswith(":"):
            function = re.search(r"(\w+)\(|$", text)[1]
        elif declaring is None:
            seen[function, text] += 1
            name = f"{file}.{function}" + (f"#{seen[function, text]}" if seen[function, text] > 1 else "")
            yield Statement(file, range(first[0] - 1, token.start[0]), " " * indent, text, tokens,
                            function if indent else "", name)
        text, tokens, first, end = "", [], None, None


def parts(s: Statement) -> list[tuple[int, int]]:
    """Where expressions stand that can be given in two forms; the whole of a simple statement."""
    words = [token for token, _ in s.tokens]
    if (loop := re.match(r"for \w+ in p?range\((.*)\):$", s.text)) or words[0] == "cdef":
        depth, pieces, start = 0, [], loop.start(1) if loop else None
        for word, at in s.tokens:
            depth += (word in OPENING) - (word in CLOSING)
            if loop and at >= loop.start(1) and (word == "," and depth == 1 or at == loop.end(1)):
                pieces.append((start, at))
                start = at + 2
            if not loop and depth == 0 and word == "=":
                start = at + 2
            if not loop and depth == 0 and word == "," and start:
                pieces.append((start, at))
                start = None
        if not loop:
            return pieces + ([(start, len(s.text))] if start else [])
        # a step is a constant, and so are an OpenMP loop's options
        return pieces[: 1 if "prange" in s.text else 2]
    if loop := re.match(r"for \w+ from (.+) <= \w+ < (.+) by .+:$", s.text):
        return [loop.span(1), loop.span(2)]
    if words[0] in ("if", "elif", "while"):
        return [(len(words[0]) + 1, len(s.text) - 1)]
    declares = ("for", "class", "with", "try", "except", "else", "raise", "pass", "include", "from", "import", "cdef")
    return [] if words[0] in declares or s.text.endswith(":") or s.tokens[0][0][:1] in "\"'@" else [(0, len(s.text))]


def operands(tokens: list[tuple[str, int]]) -> tuple[list[bool], list[bool]]:
    """Which tokens have a left operand, and which belong to a cast."""
    left, cast = [], [False] * len(tokens)
    for i, (word, _) in enumerate(tokens):
        before = tokens[i - 1][0] if i else "="
        left.append(before in CLOSING or before not in KEYWORDS and (before[0].isalnum() or before[0] in "_'\""))
        if i and cast[i - 1] and before == ">":
            left[i] = False
        if word == "<" and not left[i]:
            stop = next(j for j in range(i, len(tokens)) if tokens[j][0] == ">")
            cast[i : stop + 1] = [True] * (stop + 1 - i)
    return left, cast


def mutants_of(s: Statement) -> list[Mutant]:
    # what runs at import runs before a mutant is chosen
    if not s.function or s.function in FETCHING | MEASURES or FETCHES.match(s.text) or SIZES.match(s.text):
        return []
    found, (left, cast) = [], operands(s.tokens)
    for start, stop in parts(s):
        def add(at, to, instead, start=start, stop=stop):
            found.append(Mutant(s, start, stop, s.text[start:at] + instead + s.text[to:stop]))

        if s.text.startswith("for "):
            for change in (" + 1", " - 1"):
                add(start, stop, f"({s.text[start:stop]}){change}")
        if (start, stop) == (0, len(s.text)):
            # dropped: a call, what changes a value or keeps a comparison, a jump
            is_call = s.text.endswith(")") and re.match(r"[\w.]+\(", s.text) and not re.search(r"\) = ", s.text)
            if is_call or re.search(r" \W{1,2}= ", s.text) or s.text in ("return", "break", "continue"):
                add(start, stop, "pass")
        for i, (word, at) in enumerate(s.tokens):
            end, binary = at + len(word), left[i] and not cast[i]
            if not start <= at < stop or cast[i]:
                continue
            if word in COMPARISONS and binary:
                add(at, end, COMPARISONS[word])
            if word in SWAPS and (binary or word[0].isalpha()):
                add(at, end, SWAPS[word])
            for number in NUMBERS.get(word, []):
                add(at, end, number)
            if word in ("+", "-", "and", "or") and binary:
                add(s.tokens[i - 1][1] + len(s.tokens[i - 1][0]), end_of_operand(s.tokens, left, cast, i), "")
    return found


def end_of_operand(tokens, left, cast, operator: int) -> int:
    """Where the right operand ends: that of a dropped term."""
    ends, depth = END_OF_CONDITION if tokens[operator][0].isalpha() else END_OF_TERM, 0
    for i in range(operator + 1, len(tokens)):
        word = tokens[i][0]
        if depth == 0 and word in ends and not cast[i] and (left[i] or word.isalpha()):
            return tokens[i - 1][1] + len(tokens[i - 1][0])
        depth += (word in OPENING) - (word in CLOSING)
    return tokens[-1][1] + len(tokens[-1][0])


def in_both_forms(s: Statement, mutants: dict[int, Mutant]) -> list[str]:
    """The statement, and its mutants by number."""
    if all((m.start, m.stop) == (0, len(s.text)) for m in mutants.values()):
        lines = []
        for number, mutant in mutants.items():
            lines += [f"{s.indent}{'elif' if lines else 'if'} is_on({number}):", f"{s.indent}    {mutant.text()}"]
        return [*lines, f"{s.indent}else:", f"{s.indent}    {s.text}"]
    text = s.text
    for start, stop in sorted({(m.start, m.stop) for m in mutants.values()}, reverse=True):
        forms = "".join(f"({m.changed}) if is_on({number}) else " for number, m in mutants.items()
                        if (m.start, m.stop) == (start, stop))
        text = f"{text[:start]}({forms}({s.text[start:stop]})){text[stop:]}"
    return [s.indent + text]


def write_sources(folder: Path, mutants: dict[int, Mutant]) -> dict[tuple[str, int], list[int]]:
    """Copies with the mutants in them; whose each line is."""
    numbers = {}
    for file in SOURCES:
        of_statement = collections.defaultdict(dict)
        for number, mutant in mutants.items():
            if mutant.statement.file == file:
                of_statement[mutant.statement.lines.start][number] = mutant
        lines, written = (CHECKOUT / "src_pyx" / f"{file}.pyx").read_text().splitlines(), []
        at = 0
        for first, chosen in sorted(of_statement.items()):
            s = next(iter(chosen.values())).statement
            written += lines[at:first]
            for line in in_both_forms(s, chosen):
                written.append(line)
                own = [n for n, m in chosen.items() if line == f"{s.indent}    {m.text()}"]
                numbers[file, len(written)] = own[:1] or list(chosen)
            at = s.lines.stop
        (folder / "src_pyx" / f"{file}.pyx").write_text("\n".join(written + lines[at:]) + "\n")
    return numbers


def replace(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        if old not in text:
            sys.exit(f"{file.name} has no {old!r}: mutants.py must follow it")
        text = text.replace(old, new)
    file.write_text(text)


def prepare(copy: Path) -> None:
    """The checkout's tracked files, as one path is built from them with little optimisation and much to choose."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT,
                            capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (CHECKOUT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, copy / name)
    replace(copy / "setup.py", ("in PATHS.items():", f"in [({PATH!r}, PATHS[{PATH!r}])]:"), ('["-O3"]', '["-O1"]'),
            ("force=True)", "force=True, emit_linenums=True)"))
    # unrolled whole, a mutant of a tile would be compiled hundreds of times
    replace(copy / "src_pyx/simd.h", ("INLINED __attribute__((always_inline)) void", "INLINED void"),
            ("INLINED_VEC __attribute__((always_inline)) vec", "INLINED_VEC vec"))
    replace(copy / "src_pyx/core.pyx", ("from libc.stdlib cimport free", "from libc.stdlib cimport atoi, free, getenv"),
            ('include "elementwise.pyx"', CHOOSING + 'include "elementwise.pyx"'))
    # the first example that fails will do; the smallest takes minutes to find
    with open(copy / "tests/conftest.py", "a") as conftest:
        conftest.write('\nfrom hypothesis import Phase  # noqa\n\nsettings.register_profile("mutants", settings.'
                       'get_profile("fixed"), phases=[Phase.explicit, Phase.generate])\n'
                       'settings.load_profile("mutants")\n')


def build(copy: Path, installed: Path, mutants: dict[int, Mutant]) -> None:
    """Compiles the mutants; those that cannot be are taken out."""
    for _ in range(ATTEMPTS):
        numbers = write_sources(copy, mutants)
        done = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--build-lib", installed], cwd=copy,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 0:
            shutil.copytree(copy / "fastopt", installed / "fastopt", dirs_exist_ok=True)
            return
        wrong = set()
        for file, line in re.findall(r"^(?:src_pyx/)?(\w+)\.pyx:(\d+):\d+: (?!warning|note)", done.stdout, re.M):
            wrong.update(numbers.get((file, int(line)), []))
        if not wrong:
            sys.exit(f"{done.stdout[-5000:]}\nnone of the errors is at a mutant")
        for number in wrong:
            mutants.pop(number, None)
        print(f"{len(wrong)} mutants do not compile", flush=True)
    sys.exit(f"after {ATTEMPTS} attempts it does not compile")


class Runner:
    """A plugin that runs the tests once a mutant, each time in a fork of the process that collected them."""

    def __init__(self, mutants: dict[int, Mutant], jobs: int, results: Path | None, scratch: Path):
        self.mutants, self.jobs, self.results, self.scratch = mutants, jobs, results, scratch
        self.known = {}
        if results and results.exists():
            self.known = {r["key"]: r for r in map(json.loads, results.read_text().splitlines())}
        self.at = mmap.mmap(-1, 8 * (max(mutants) + 1))  # the test that each process is at

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        elsewhere = [item.nodeid for item in items if OTHER_PATHS.search(item.nodeid)]
        print("left out, for want of another path:", *elsewhere, sep="\n    ")
        items[:] = [item for item in items if item.nodeid not in elsewhere]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.run_original(session.items)
        waiting = [n for n in self.mutants if self.mutants[n].key() not in self.known]
        running: dict[int, tuple[int, list, list[float]]] = {}
        again: set[int] = set()
        while waiting or running:
            if waiting and len(running) < self.jobs:
                number = waiting.pop(0)
                items = [item for item in self.items if number in self.reached[item.nodeid]]
                if items:
                    running[number] = self.fork(number, self.run_mutant, items), items, [0, time.monotonic()]
                else:
                    self.add(number, "survived", "no test reaches it")
                continue
            time.sleep(0.02)
            for number, (process, items, since) in list(running.items()):
                at = int.from_bytes(self.at[8 * number : 8 * number + 8], "little")
                if at != since[0]:
                    since[:] = at, time.monotonic()
                ended, status = os.waitpid(process, os.WNOHANG)
                late = not ended and time.monotonic() - since[1] > PATIENCE + 10 * self.seconds[items[at].nodeid]
                if late or ended:
                    try:
                        os.killpg(process, signal.SIGKILL)  # with what its tests started
                    except ProcessLookupError:
                        pass
                    if late:
                        os.waitpid(process, 0)
                    del running[number]
                    if ended and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and (
                            number not in again):
                        waiting.append(number)  # from outside, as by a kernel short of memory: no crash of its own
                        again.add(number)
                        continue
                    how = "timeout" if late else "crash" if os.WIFSIGNALED(status) else "failure"
                    survived = ended and status == 0
                    self.add(number, "survived" if survived else how, "" if survived else items[at].nodeid)
        return True

    def add(self, number: int, outcome: str, test: str) -> None:
        result = self.known[self.mutants[number].key()] = {
            "key": self.mutants[number].key(), "outcome": outcome, "test": test}
        if self.results:
            with self.results.open("a") as lines:
                lines.write(json.dumps(result) + "\n")

    def fork(self, number: int, function, items: list[pytest.Item]) -> int:
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            os.setsid()
            output = os.open(self.scratch / f"{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            # one that asks for all memory fails instead, and none leaves a core file
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
                os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
                status = function(number, items)
        finally:
            os._exit(status)

    def run_mutant(self, number: int, items: list[pytest.Item]) -> int:
        os.environ["FASTOPT_MUTANT"] = str(number)  # for the processes that tests start
        for core in cores():
            core.set_mutant(number)
        for i, item in enumerate(items):
            self.at[8 * number : 8 * number + 8] = i.to_bytes(8, "little")
            following = items[i + 1] if i + 1 < len(items) else None
            if any(report.failed for report in runtestprotocol(item, nextitem=following, log=False)):
                return 1
        return 0

    def run_original(self, items: list[pytest.Item]) -> None:
        """How long each test takes without a mutant and which statements it reaches; none may fail."""
        file = self.scratch / "original.json"
        process = self.fork(0, lambda _, items: file.write_text(json.dumps(record(items, self.mutants))) * 0, items)
        if os.waitpid(process, 0)[1]:
            pytest.exit("without a mutant the tests end the process", 1)
        records = json.loads(file.read_text())
        if failed := [test for test, (passed, *_) in records.items() if not passed]:
            pytest.exit("\n    ".join(["without a mutant fail", *failed]), 1)
        print(f"without a mutant {len(items)} tests pass", flush=True)
        self.seconds = {test: seconds for test, (_, seconds, _) in records.items()}
        self.reached = {test: set(reached) for test, (*_, reached) in records.items()}
        of_file = collections.defaultdict(set)
        for item in items:
            of_file[item.path] |= self.reached[item.nodeid]
        for item in items:
            # a test may look at what an earlier one has computed
            if re.search(r"functools\.cache|scope=", item.path.read_text()):
                self.reached[item.nodeid] = of_file[item.path]
        self.items = sorted(items, key=lambda item: (
            self.seconds[item.nodeid] > QUICK, TESTS.index(item.path.stem.removeprefix("test_")),
            self.seconds[item.nodeid]))


def cores() -> list:
    from fastopt import _dispatch

    return [_dispatch.core("float32"), _dispatch.core("float64")]


def record(items: list[pytest.Item], mutants: dict[int, Mutant]) -> dict[str, tuple[bool, float, list[int]]]:
    """Of each test: whether it passes, its seconds, and the mutants it reaches: all, if it starts a process."""
    started, start_process = [], subprocess.Popen.__init__

    def noted(*arguments, **options):
        started.append(True)
        start_process(*arguments, **options)

    subprocess.Popen.__init__ = noted
    records = {}
    for item, following in zip(items, [*items[1:], None], strict=True):
        started.clear()
        start = time.monotonic()
        failed = any(report.failed for report in runtestprotocol(item, nextitem=following, log=False))
        seconds, reached = time.monotonic() - start, [core.reached() for core in cores()]
        records[item.nodeid] = not failed, seconds, [n for n in mutants if started or any(hit[n] for hit in reached)]
    return records


def choose(count: int, seed: int) -> dict[int, Mutant]:
    """By number from 1, as many of a file as is its share of the statements that have any: those of the smallest
    hashes, so that a change of one statement leaves the choice of the others."""
    candidates = {file: [m for s in statements(file, CHECKOUT / "src_pyx" / f"{file}.pyx") if (m := mutants_of(s))]
                  for file in SOURCES}
    total, chosen = sum(map(len, candidates.values())), []

    def rank(mutant):
        return hashlib.sha256(f"{seed} {mutant.key()}".encode()).digest()

    for file, of_statements in candidates.items():
        every = {mutant.key(): mutant for mutants in of_statements for mutant in mutants}
        share = round(count * len(of_statements) / total)
        chosen += sorted(every.values(), key=rank)[:share]
        print(f"{file}.pyx: {len(every)} mutants of {len(of_statements)} statements, {share} chosen")
    return dict(enumerate(sorted(chosen, key=rank), 1))


def equivalents() -> set[str]:
    file, heading = EQUIVALENTS
    section = file.read_text().partition(heading)[2].partition("\n## ")[0]
    return set(re.findall("^\\* (.+?: `[^`]+` → `[^`]+`): .", section, re.M))


def report(results: list[dict[str, str]]) -> float:
    """Prints the outcomes and the survivors; how many per cent are killed of those that are not equivalent."""
    known, percent = equivalents(), 0.0
    for result in results:
        if result["key"] in known and result["outcome"] == "survived":
            result["outcome"] = "equivalent"
    kinds = ("failure", "crash", "timeout", "survived", "equivalent")
    print(f"\n{'':16}{'mutants':>10}", *(f"{kind:>11}" for kind in kinds), f"{'killed':>10}", sep="")
    for file in (*SOURCES, ""):
        counts = collections.Counter(r["outcome"] for r in results if r["key"].startswith(file))
        total = sum(counts.values())
        percent = 100 - 100 * counts["survived"] / max(1, total - counts["equivalent"])
        print(f"{file or 'all':16}{total:10}", *(f"{counts[kind]:11}" for kind in kinds), f"{percent:9.1f}%", sep="")
    for result in results:
        if result["outcome"] == "survived":
            print(f"\n* {result['key']}: ")
        elif result["outcome"] != "equivalent" and result["key"] in known:
            print(f"\nlisted as equivalent, but a {result['outcome']} of {result['test']}:\n* {result['key']}")
    return percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=400, help="mutants to choose (400)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (0)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at a time (2)")
    parser.add_argument("--results", type=lambda name: Path(name).resolve(),
                        help="JSON lines, added to; what is there is not run again")
    parser.add_argument("--folder", type=Path, help="where to build, and leave it; a temporary folder without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        copy, installed = folder / "checkout", folder / "installed"
        mutants = choose(options.count, options.seed)
        n_chosen = len(mutants)
        prepare(copy)
        build(copy, installed, mutants)
        (folder / "mutants.txt").write_text("".join(f"{number} {m.key()}\n" for number, m in mutants.items()))
        print(f"{n_chosen} mutants chosen, {n_chosen - len(mutants)} of them do not compile", flush=True)
        os.environ |= {"FASTOPT_ISA": PATH, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path[0] = str(installed)
        os.chdir(copy)
        runner = Runner(mutants, options.jobs, options.results, folder)
        files = [f"tests/test_{name}.py" for name in TESTS if Path(f"tests/test_{name}.py").exists()]
        if status := pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-p", "no:faulthandler", *files], [runner]):
            sys.exit(int(status))
        if report([runner.known[mutant.key()] for mutant in mutants.values()]) < ENOUGH:
            sys.exit(1)


if __name__ == "__main__":
    main()
