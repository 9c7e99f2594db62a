"""Table of samplers and the problems they solve: by every sampler's `needs`, on a small problem of each kind."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from invdiff.operators import GaussianNoise, Inpainting, Operator, PoissonNoise, SuperResolution, as_operator
from invdiff.priors import LatentPrior, LinearCodec, Prior
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler, all_samplers

SHAPE = (1, 8, 8)


class _Flat(Prior):
    """A trivial prior, differentiable or not."""

    def __init__(self, differentiable: bool = True) -> None:
        super().__init__()
        self.differentiable = differentiable

    @property
    def embedding(self) -> Tensor:
        return torch.zeros(1, 1)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return torch.full_like(x, 0.5)


@dataclass(frozen=True)
class Row:
    """The abilities of one sampler.

    operators  by kind of operator, whether it can take one, with the best of noises and priors
    noise      `any`, or `Gaussian`
    prior      `any`, or `gradients`: it takes products with the network's Jacobian; `latent`: one of codes; `text`: one
               with an embedding
    forwards, vjps  of the network, for one sample with the default settings
    """

    name: str
    operators: dict[str, bool]
    noise: str
    prior: str
    forwards: int
    vjps: int


def kinds() -> dict[str, Operator]:
    """An operator of each kind that samplers distinguish."""
    return {
        "mask": Inpainting(keep=0.5),
        "SVD": SuperResolution(factor=2),
        "linear": as_operator(lambda x: x.cumsum(-1), linear=True, image_shape=SHAPE),
        "nonlinear": as_operator(lambda x: x**2, image_shape=SHAPE),
        "black box": as_operator(lambda x: x**2, differentiable=False, image_shape=SHAPE),
    }


def compatibility() -> Iterator[Row]:
    """A row for every sampler of the package."""
    image = torch.full((1, *SHAPE), 0.5)
    operators = kinds()
    with torch.no_grad():
        measured = {kind: operator(image) for kind, operator in operators.items()}

    def able(sampler: Sampler, kind: str, *, poisson: bool = False, prior: Prior | None = None) -> bool:
        noise = PoissonNoise() if poisson else GaussianNoise()
        problem = InverseProblem(operators[kind], noise, measured[kind], image_shape=SHAPE)
        flat: Prior = prior or _Flat()
        if sampler.needs().codec:
            flat = LatentPrior(flat, LinearCodec(torch.eye(4), 2))
        return not sampler.needs().missing(problem, flat)

    for name, cls in all_samplers().items():
        sampler = cls()
        takes = {kind: able(sampler, kind) for kind in operators}
        one = next(kind for kind in takes if takes[kind])
        cost = sampler.expected_cost()
        yield Row(
            name,
            takes,
            "any" if able(sampler, one, poisson=True) else "Gaussian",
            ("latent, " if sampler.needs().codec else "")
            + ("text, " if sampler.needs().embedding else "")
            + ("any" if able(sampler, one, prior=_Flat(differentiable=False)) else "gradients"),
            cost.forwards,
            cost.vjps,
        )


def headings() -> list[str]:
    return ["sampler", *kinds(), "noise", "prior", "calls", "VJPs"]


def cells(row: Row) -> list[str]:
    able = ["yes" if able else "–" for able in row.operators.values()]  # noqa: RUF001, as tables show nothing
    return [row.name, *able, row.noise, row.prior, str(row.forwards), str(row.vjps)]


def table() -> Table:
    """A table for the terminal."""
    title = "what each can solve, and network calls of a sample with its defaults"
    made = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for number, words in enumerate(headings()):
        made.add_column(words, justify="right" if number >= len(headings()) - 2 else "left")
    for row in compatibility():
        made.add_row(*cells(row))
    return made


def markdown() -> str:
    """The table of docs/samplers.md, without plug-ins."""
    rows = [headings(), ["---"] * len(headings())]
    for row in compatibility():
        name, *rest = cells(row)
        module = all_samplers()[name].__module__
        if module.startswith("invdiff."):
            rows.append([f"[`{name}`](../{module.replace('.', '/')}.py)", *rest])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
