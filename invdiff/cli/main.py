"""`invdiff <command> [key=value ...]`: picks the command."""

import importlib
import io
import os
import sys

from invdiff._version import __version__
from invdiff.cli.process import ending_at_once, flushed
from invdiff.cli.slips import closest, find_slip

COMMANDS = {
    "reconstruct": "reconstruct images from measurements, with their uncertainty",
    "restore": "restore a photograph whose noise and blur are not known: invdiff restore photo.jpg",
    "upscale": "enlarge a photograph: invdiff upscale photo.png scale=2",
    "benchmark": "compare samplers on the same measurements, at equal cost; resumable",
    "report": "write the tables of a benchmark as LaTeX and CSV: invdiff report out format=latex,csv",
    "tune": "search a sampler's settings on validation images; resumable",
    "calibrate": "test a sampler's uncertainty: ranks, coverage, TARP",
    "train": "train a prior on a folder, .npz or .tar of images, or on measurements",
    "check-operator": "check a forward model against the rules, and list what it can be used with",
    "check-measurement": "check real data against operator, noise and prior before a run",
    "check-prior": "check a prior: its contract, denoising, image range, cost and samples",
    "check-sampler": "check a sampler against the rules",
    "help": "explain an operator, a noise model, a sampler or a prior, and its options: invdiff help ct",
    "list": "list operators, noise models, samplers, priors, example data and experiments",
}

HELP = """invdiff: reconstruct images from measurements with diffusion priors

usage: invdiff COMMAND [key=value ...]

examples:
  invdiff reconstruct                                          a bundled photograph, 70 % of its pixels missing
  invdiff reconstruct operator=super_resolution operator.factor=4 num_samples=8
  invdiff reconstruct input=photo.jpg size=256 operator=gaussian_blur noise.sigma=0.02
  invdiff reconstruct measurement=y.npy operator=inpainting operator.mask=mask.png prior=brain
  invdiff restore photo.jpg                                    its noise and blur are estimated first
  invdiff benchmark experiment=quick                           five samplers, three operators, a leaderboard
  invdiff tune sampler=reddiff operator=inpainting             settings of a sampler, found on validation images
  invdiff calibrate sampler=dps                                compare its uncertainty with its errors
  invdiff check-operator operator=callable operator.file=my_camera.py:Camera image_shape=[1,32,32]
  invdiff check-prior prior=diffusers prior.path=my-model/ input=photos/
  invdiff check-sampler sampler=callable sampler.file=mine.py:PlugAndPlay
  invdiff list samplers
  invdiff help ct daps                                         what they are, and what their options mean

commands:
{commands}

`invdiff COMMAND --help` explains a command and its options; every value it shows can be overridden as key=value.
`--cfg job` prints the composed configuration, `-m` sweeps over comma-separated values."""


def main() -> None:
    """Entry point of the `invdiff` script.

    Exits with 0, 1 where a check fails or the reader of the output has left, 2 after an error, 130 on Ctrl-C and 143 on
    SIGTERM.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open until the process ends
    with ending_at_once():
        sys.exit(flushed(lambda: _run(sys.argv[1:])))


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode gets question marks, not a traceback
    if not arguments or arguments[0] in ("-h", "--help") or arguments == ["help"]:
        width = max(map(len, COMMANDS))
        print(HELP.format(commands="\n".join(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items())))
        return 0
    if arguments[0] == "-V" or "--version" in arguments:  # after a command, it would be hydra's
        print(f"invdiff {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        hint = closest(arguments[0], list(COMMANDS))
        known = f"(commands: {', '.join(COMMANDS)})"
        print(f"invdiff: error: unknown command {arguments[0]!r}{hint} {known}", file=sys.stderr)
        return 2
    if arguments[0] == "help" and arguments[1] in COMMANDS:
        arguments = [arguments[1], "--help", *arguments[2:]]
    slip = find_slip(arguments[0], arguments[1:])
    if slip is not None:
        print(f"invdiff: error: {slip}", file=sys.stderr)
        return 2
    # OpenMP lets an idle thread spin 30 times longer: no faster on idle cores, two to three times slower on busy ones.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Imported only now: --help must not wait for torch and hydra.
    command = importlib.import_module(f"invdiff.cli.{arguments[0].replace('-', '_')}_command")
    from invdiff.cli.app import guarded

    # A `_target_` may be a module of the folder that the command runs in, which a script does not search. Last of all.
    if "" not in sys.path:
        sys.path.append("")
    sys.argv = [f"invdiff {arguments[0]}", *arguments[1:]]
    return guarded(command.main)


if __name__ == "__main__":
    main()
