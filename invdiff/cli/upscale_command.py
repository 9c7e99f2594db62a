"""`invdiff upscale`: `invdiff restore` for a photograph that is sharp but small."""

import sys

from invdiff.cli import restore_command

DEFAULTS = ("scale=2", "blur=0")


def main() -> None:
    names = {word.partition("=")[0] for word in sys.argv[1:]}
    sys.argv += [word for word in DEFAULTS if word.partition("=")[0] not in names]
    restore_command.main()
