"""The table behind scripts/samples, which prepares what this needs: one row a vector, one column
a verifier. Exits 1 when any cell is wrong."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

SAMPLES = {
    "node": ["node", "docs/samples/verify.mjs"],
    "python": [sys.executable, "docs/samples/verify.py"],
    "shell": ["bash", "docs/samples/verify.sh"],
    "rust": ["target/debug/examples/verify"],
}
PUBLISHED = {
    f"{library}/{language}": [*command, library]
    for library in ("standardwebhooks", "stripe")
    for language, command in {
        "js": ["node", "docs/samples/published/published.mjs"],
        "py": [sys.executable, "docs/samples/published/published.py"],
    }.items()
}
GENERATE = [sys.executable, "docs/vectors/generate.py"]
SECONDS_MAX = 60


def answer(command, case):
    """What a verifier says about a case: its exit code and the last line that it printed."""
    request = {key: case[key] for key in ("secret", "headers", "body_base64", "now", "subcommand")}
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, timeout=SECONDS_MAX
    )
    lines = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()
    return done.returncode, lines[-1]


def judge_sample(command, case):
    """Our samples must give the very reason."""
    code, said = answer(command, case)
    wanted = (0, "ok") if case["refused"] is None else (1, f"refused: {case['refused']}")
    return None if (code, said) == wanted else f"wanted {wanted}, got {(code, said)}"


def judge_published(command, library, case):
    """A published library must agree; its words are its own."""
    if library in case["not_for"]:
        return "-"
    code, said = answer(command, case)
    if case["refused"] is None:
        return None if code == 0 else f"wanted ok, got {said}"
    return None if code == 1 and said.startswith("refused: ") else f"wanted a refusal, got {said}"


def carries(library, case):
    """Whether the case has a header of the scheme that the library verifies."""
    names = {name.lower() for name in case["headers"]}
    wanted = "x-stationmaster-signature" if library == "stripe" else "webhook-signature"
    return wanted in names or not names


def fresh_cases():
    """The same cases, signed just now."""
    made = subprocess.run(
        [*GENERATE, "--at", str(int(time.time()))], capture_output=True, text=True, check=True
    )
    return json.loads(made.stdout)["cases"]


def main():
    checked_in = open("docs/vectors/signatures.json", encoding="utf-8").read()
    made = subprocess.run(GENERATE, capture_output=True, text=True, check=True).stdout
    if made != checked_in:
        print("docs/vectors/signatures.json is not what generate.py makes; update it with:\n"
              "  python3 docs/vectors/generate.py > docs/vectors/signatures.json")
        return 1

    cases = json.loads(checked_in)["cases"]
    rows = {case["name"]: {} for case in cases}
    failures = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, command in SAMPLES.items():
            for case in cases:
                rows[case["name"]][name] = pool.submit(judge_sample, command, case)
        for name, command in PUBLISHED.items():
            library = name.split("/")[0]
            # Signed anew for each library: they judge age by the clock.
            for case in fresh_cases():
                if carries(library, case):
                    rows[case["name"]][name] = pool.submit(judge_published, command, library, case)

    columns = [*SAMPLES, *PUBLISHED]
    width = max(map(len, rows))
    print(" " * width, *columns)
    passed = 0
    for case, cells in rows.items():
        shown = []
        for column in columns:
            problem = cells[column].result() if column in cells else "-"
            if problem is None:
                passed += 1
            elif problem != "-":
                failures.append(f"{case}, {column}: {problem}")
            word = {None: "ok", "-": "-"}.get(problem, "FAIL")
            shown.append(word.center(len(column)))
        print(case.ljust(width), *shown)
    print("\n- means: the library does something else there; `not_for` in the vectors says what.")
    for failure in failures:
        print(failure)
    print(f"{passed} passed, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
