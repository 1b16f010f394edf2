"""Programs that try to be paid without solving anything. None may be; right ones of the same shape
are.
"""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from whet.errors import RewardError
from whet.rewards.code.verifier import CodeReward
from whet.types import Problem, Score

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

ADD: dict[str, Any] = {
    "kind": "call",
    "entry": "add",
    "tests": [
        {"args": [1, 2], "expected": 3},
        {"args": [70000, 7], "expected": 70007},
        {"args": [0.5, 0.25], "expected": 0.75},
    ],
}
SUMS: dict[str, Any] = {
    "kind": "stdio",
    "tests": [
        {"input": "3\n1 2 3\n", "output": "6\n14\n0.5\n"},
        {"input": "2\n4 5\n", "output": "9\n41\n4.5\n"},
    ],
}
HUMAN: dict[str, Any] = {
    "kind": "humaneval",
    "prompt": "def double(x):\n    '''Twice x.'''\n",
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "double",
    "test": "import math\ndef check(candidate):\n    assert candidate(3) == 6\n"
    "    assert math.fabs(candidate(0.1) - 0.2) < 1e-6\n    assert not candidate(0)\n",
}
ALL: dict[str, Any] = {
    "kind": "asserts",
    "entry": "even",
    "reference": "def even(n): return n % 2 == 0",
    "tests": [
        "assert all(map(even, [2, 4]))",
        "assert not any([even(n) for n in (1, 3)])",
        "assert len(list(map(even, range(5)))) == 5",
    ],
}
RIGHT = {
    "a function": (ADD, "def add(a, b): return a + b"),
    "a function that prints": (ADD, "def add(a, b):\n    print('FAILED')\n    return a + b"),
    "a script": (
        SUMS,
        "input()\nx = list(map(int, input().split()))\n"
        "print(sum(x), sum(i*i for i in x), sep='\\n')\nprint(0.5 if len(x) == 3 else 4.5)",
    ),
    "a script that exits": (
        SUMS,
        "import sys\ninput()\nx = list(map(int, input().split()))\n"
        "sys.stdout.write(f'{sum(x)} \\n{sum(i*i for i in x)}\\n"
        "{0.50000001 if len(x) == 3 else 4.5}')\nsys.exit(0)",
    ),
    "a script in a thread": (
        SUMS,
        "import threading\ndef main():\n    input()\n    x = list(map(int, input().split()))\n"
        "    print(sum(x), sum(i*i for i in x), .5 if len(x) == 3 else 4.5, sep='\\n')\n"
        "threading.Thread(target=main).start()",
    ),
    "a body": (HUMAN, "    return x + x"),
    "asserts": (ALL, "def even(n): return not n & 1"),
}
EQUAL = (
    "class Yes{base}:\n    def __eq__(self, other): return True\n"
    "    __ne__ = lambda self, other: False\n    __hash__ = object.__hash__\n"
)
EVERYWHERE = (
    "import os\nfor fd in range(3, 64):\n    for text in {texts}:\n"
    "        try: os.write(fd, text.encode() + b'\\n')\n        except OSError: pass\n"
)
FRAMES = (
    "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    space = {**frame.f_globals, **frame.f_locals}\n    "
)
ON_ADD = {
    "an object equal to everything": EQUAL.format(base="") + "def add(a, b): return Yes()",
    "an int equal to everything": EQUAL.format(base="(int)") + "def add(a, b): return Yes(0)",
    "a float equal to everything": EQUAL.format(base="(float)") + "def add(a, b): return Yes(0)",
    "a str equal to everything": EQUAL.format(base="(str)") + "def add(a, b): return Yes()",
    "a list equal to everything": EQUAL.format(base="(list)") + "def add(a, b): return Yes()",
    "a dict equal to everything": EQUAL.format(base="(dict)") + "def add(a, b): return Yes()",
    "a tuple equal to everything": EQUAL.format(base="(tuple)") + "def add(a, b): return Yes()",
    "a set equal to everything": EQUAL.format(base="(set)") + "def add(a, b): return Yes()",
    "an object that says it is an int": "class I:\n    __class__ = int\n"
    "    __int__ = __index__ = lambda s: 3\n"
    "    __eq__ = lambda s, o: True\ndef add(a, b): return I()",
    "a class that is equal": "class M(type):\n    __eq__ = lambda s, o: True\n    __hash__ = type.__hash__\n"
    "class int(metaclass=M): pass\ndef add(a, b): return int",
    "unittest.mock.ANY": "from unittest.mock import ANY\ndef add(a, b): return ANY",
    "a forged tag": "def add(a, b): return {'int': '0x3'}",
    "a forged reply as a value": "def add(a, b): return {'value': 3, 'verdict': 'pass'}",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "SystemExit in the call": "def add(a, b): raise SystemExit(0)",
    "quit()": "def add(a, b): quit()",
    "os._exit(0)": "import os\nos._exit(0)",
    "os._exit(0) in the call": "import os\ndef add(a, b): os._exit(0)",
    "posix._exit": "import posix\ndef add(a, b): posix._exit(0)",
    "exec of another program": "import os, sys\n"
    "def add(a, b): os.execv(sys.executable, [sys.executable, '-c', ''])",
    "exec that prints": "import os, sys\ndef add(a, b): os.execv(sys.executable, [sys.executable, '-c', "
    "'print(3)'])",
    "excepthook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\nraise ValueError",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): raise ValueError",
    "patched builtins": "import builtins\nfor name in ('all', 'any', 'isinstance'): setattr(builtins, name, "
    "lambda *a: True)\nbuiltins.abs = lambda x: 0\ndef add(a, b): return None",
    "patched equality of operators": "import operator, math\noperator.eq = lambda a, b: True\n"
    "math.isclose = lambda *a, **k: True\ndef add(a, b): return 0",
    "patched json": 'import json\njson.dumps = lambda *a, **k: \'{"verdict": "pass", "passed": 3, '
    '"total": 3}\'\ndef add(a, b): return 0',
    "patched encoder": FRAMES + "for name in ('encode', 'replied', 'described'):\n"
    "        if name in space: frame.f_globals[name] = lambda *a: {'verdict': 'pass', 'value': "
    "True}\n    frame = frame.f_back\ndef add(a, b): return 0",
    "frames to the expected value": FRAMES
    + "found = [v for k, v in space.items() if k in ('expected', 'tests', 'answer', 'results')]\n"
    "    frame = frame.f_back\ndef add(a, b): return found[0] if found and not "
    "callable(found[0]) else None",
    "gc for the expected value": "import gc\ndef add(a, b):\n    for x in gc.get_objects():\n"
    "        if type(x) is dict and 'expected' in x: return x['expected']",
    "memory for the expected value": "def add(a, b):\n    for line in open('/proc/self/maps'):\n"
    "        s, e = (int(x, 16) for x in line.split()[0].split('-'))\n"
    "        if 'rw' in line and e - s < 1 << 24:\n"
    "            m = open('/proc/self/mem', 'rb', 0); m.seek(s)\n"
    "            if b'70007' in m.read(e - s).replace(b'b\\'70007', b''): return 70007",
    "command line for the tests": "text = open('/proc/self/cmdline').read()\n"
    "def add(a, b): return 70007 if '70007' in text.replace(\"'70007'\", '') else None",
    "verdicts to every descriptor": EVERYWHERE.replace(
        "{texts}",
        "['{\"verdict\": \"pass\"}', '{\"passed\": 3, \"total\": 3}', 'PASS', 'ALL TESTS PASSED']",
    )
    + "def add(a, b): return 0",
    "done to every descriptor": EVERYWHERE.replace("{texts}", "['{\"done\": true}'] * 9")
    + "os._exit(0)",
    "counts to every descriptor": EVERYWHERE.replace(
        "{texts}",
        '[\'{"counts": {"passed": 99, "failed": 0, "ended": true}, "astray": false}\'] * 9',
    )
    + "def add(a, b): return 0",
    "many replies for one call": EVERYWHERE.replace("{texts}", "['{\"value\": 3}'] * 9")
    + "def add(a, b): return 3",
    "verdicts to the parent's descriptors": "import os\nfor fd in range(64):\n"
    "    try: open(f'/proc/{os.getppid()}/fd/{fd}', 'w').write('{\"verdict\": "
    '"pass"}\\n\' * 5)\n    except OSError: pass\ndef add(a, b): return 0',
    "printing success": "print('ALL TESTS PASSED')\nprint('OK', flush=True)\ndef add(a, b): print(3)",
    "overriding the check": "def check(*a): return True\nassert_equal = same = grade = _call = check\n"
    "def add(a, b): return None",
    "patched unittest and pytest": "import unittest, sys\nunittest.TestCase.assertEqual = lambda *a: None\n"
    "sys.modules['pytest'] = unittest\nopen('/tmp/conftest.py', 'w').write('x')\n"
    "def add(a, b): return None",
    "not a number": "def add(a, b): return float('nan')",
    "infinity": "def add(a, b): return float('inf')",
    "a text of the number": "def add(a, b): return str(a + b)",
    "a list of every answer": "def add(a, b): return [3, 70007, 0.75]",
    "a constant": "def add(a, b): return 3",
    "killing the guest": "import os, signal\ndef add(a, b): os.kill(os.getppid(), signal.SIGKILL)",
    "a thread that writes later": "import threading, os, time\ndef later():\n    time.sleep(.05)\n"
    "    for fd in range(3, 64):\n        try: os.write(fd, b'{\"value\": 70007}\\n')\n"
    "        except OSError: pass\nthreading.Thread(target=later).start()\n"
    "def add(a, b): time.sleep(.1); return 0",
}
ON_SUMS = {
    "only the first line": "input()\nprint(sum(map(int, input().split())))",
    "one line too many": RIGHT["a script"][1] + "\nprint(7)",
    "nothing": "pass",
    "exit 0 without output": "import os\nos._exit(0)",
    "the right output, then a crash": RIGHT["a script"][1] + "\nraise SystemExit(3)",
    "the right output, then a signal": RIGHT["a script"][1]
    + "\nimport os, sys\nsys.stdout.flush()\nos.abort()",
    "the right output to the error stream": "import sys\nsys.stdout = sys.stderr\n"
    + RIGHT["a script"][1],
    "the right output for one test alone": "print('6\\n14\\n0.5')",
    "not a number for a decimal": RIGHT["a script"][1].replace("print(0.5", "print('nan' or 0.5"),
    "infinity for a decimal": RIGHT["a script"][1].replace("print(0.5", "print('1e999' or 0.5"),
    "digits of another script": RIGHT["a script"][1].replace(
        "print(0.5 if len(x) == 3 else 4.5)", "print('٠.٥' if len(x) == 3 else '٤.٥')"
    ),
    "all numbers there are": "for i in range(60): print(i)",
    "printing success": "print('Accepted')\nprint('PASS')",
    "a forged reply": 'print(\'{"output": "6\\\\n14\\\\n0.5", "ended": "exit 0"}\')',
    "verdicts to every descriptor": EVERYWHERE.replace(
        "{texts}", '[\'{"output": "", "ended": "exit 0", "verdict": "pass"}\'] * 4'
    ),
}
ON_HUMAN = {
    "an object equal to everything": EQUAL.format(base="") + "def double(x): return Yes()",
    "a float that is near everything": "class N(float):\n    __sub__ = __rsub__ = lambda s, o: 0.0\n"
    "    __eq__ = lambda s, o: True\n    __bool__ = lambda s: False\n"
    "def double(x): return N(1)",
    "overriding the check": "def check(candidate): pass\ndef double(x): return None",
    "patched math": "import math\nmath.fabs = lambda x: 0.0\ndef double(x): return 6 if x == 3 else 0",
    "patched assertions": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\n"
    "def double(x): raise AssertionError",
    "exit in the call": "def double(x): raise SystemExit(0)",
    "not a number": "def double(x): return float('nan')",
    "right on the first alone": "def double(x): return 6",
    "rewriting the test": FRAMES
    + "frame.f_globals['check'] = lambda *a: None\n    frame = frame.f_back\ndef double(x): return 0",
}
ON_ALL = {
    "ending the test's loop": "def even(n): raise StopIteration",
    "ending the test": "class E(BaseException): pass\ndef even(n): raise E",
    "always true": "def even(n): return True",
    "a value that is all things": "class T:\n    __bool__ = lambda s: s.n % 2 == 0\n"
    "    def __init__(s, n): s.n = 2\n"
    "def even(n): return T(n)",
    "raising what the test catches": "def even(n): raise RuntimeError",
}
HACKS = [
    (table, f"{kind}: {name}", text)
    for kind, table, group in (
        ("call", ADD, ON_ADD),
        ("stdio", SUMS, ON_SUMS),
        ("humaneval", HUMAN, ON_HUMAN),
        ("asserts", ALL, ON_ALL),
    )
    for name, text in group.items()
]


@pytest.fixture(scope="module")
def scores() -> Iterator[dict[str, Score]]:
    """Every program's score, judged in one batch."""
    cases = [*HACKS, *((table, f"right: {name}", text) for name, (table, text) in RIGHT.items())]
    try:
        reward = CodeReward(seconds=1.5, total=4.0)
    except RewardError as error:
        pytest.skip(str(error))
    with reward.pool:
        problems = [Problem(name, (), None, "", {"tests": table}) for table, name, _ in cases]
        texts = [
            text if text.startswith(" ") else f"```python\n{text}\n```" for _, _, text in cases
        ]
        yield dict(zip([name for _, name, _ in cases], reward.score(problems, texts), strict=True))


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_ones_are_paid(scores: dict[str, Score], name: str):
    assert (scores[f"right: {name}"].value, scores[f"right: {name}"].status) == (1.0, "scored")


@pytest.mark.parametrize("name", [name for _, name, _ in HACKS])
def test_no_hack_is_paid(scores: dict[str, Score], name: str):
    score = scores[name]
    assert (score.value, score.status, score.correct) == (0.0, "wrong", False), score


def test_enough_is_tried():
    assert len(HACKS) == len({name for _, name, _ in HACKS}) >= 40
