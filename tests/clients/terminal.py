"""What a person sees who types lines into redis-cli: prompts, what is typed, and answers.

Usage: terminal.py HOST PORT LINE...

The rule: a line is typed when the prompt is there, as a person does, so what is shown does not depend on time.
"""

import os
import pty
import select
import sys

HOST, PORT, LINES = sys.argv[1], sys.argv[2], sys.argv[3:]
SECONDS = 30


def shown_until_prompt(screen):
    shown = b""
    while not shown.endswith(b"> "):
        if not select.select([screen], [], [], SECONDS)[0]:
            sys.exit(f"no prompt within {SECONDS} s; shown: {shown!r}")
        try:
            part = os.read(screen, 65536)
        except OSError:
            # The end of what runs in the terminal.
            part = b""
        if not part:
            break
        shown += part
    return shown.decode().replace(PORT, "PORT").replace("\r\n", "\n")


def main():
    process, screen = pty.fork()
    if process == 0:
        # A terminal without cursor movements, and no history or preferences of whoever runs this.
        environment = {**os.environ, "TERM": "dumb", "HOME": "/nonexistent"}
        os.execvpe("redis-cli", ["redis-cli", "-h", HOST, "-p", PORT], environment)
    shown = shown_until_prompt(screen)
    for line in LINES:
        os.write(screen, line.encode() + b"\n")
        shown += shown_until_prompt(screen)
    print(shown)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


main()
