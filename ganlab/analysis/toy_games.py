"""Improved Techniques (arXiv:1606.03498), section 3.3: toy games with and without historical averaging."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.methods.base import Scene
from ganlab.methods.historical_averaging import HistoricalAveraging
from ganlab.schema import Count, NonNegative, Positive

GAMES = {"xy": "V = xy", "f": "V = (f(x) - 1)(y - 1)"}
EQUILIBRIA = {"xy": (0.0, 0.0), "f": (1.0, 1.0)}
EVERY = 5  # steps between rows of the table
FAR = 20  # times the distance at the start: a path ends there
COLORS = "#d55e00", "#0072b2"  # plain, averaged: from the Okabe-Ito palette


class ToyGames(Analysis):
    """trajectories of two toy games with and without historical averaging (Improved Techniques); needs no run

    One player chooses x to minimize V, the other y to maximize it, by simultaneous gradient steps. In V = xy
    gradient descent circles the equilibrium (0, 0), and each step takes it away by a factor sqrt(1 + lr^2).
    The paper's game is V = (f(x) - 1)(y - 1), f(x) = x for x < 0 and x^2 else, with an equilibrium at (1, 1).
    ``technique=historical_averaging``, whose own code plays here, adds weight * (theta - mean)^2 to either
    player's loss. The upper panels show the paths, the lower ones the distance to the equilibrium.

    Args:
        weight: of historical averaging; the paper gives none.
        lr: of both players.
        steps: of each game.
        distance: of the start from the equilibrium, along both axes.
    """

    runs = (0, 1000)

    weight: NonNegative = 0.1
    lr: Positive = 0.05
    steps: Count = 1500
    distance: Positive = 0.5

    def make(self, runs: Sequence[Subject]) -> Finding:
        paths = {
            (game, weight): play(game, self.weight * weight, self.lr, self.steps, self.distance)
            for game in GAMES
            for weight in (0, 1)
        }
        rows: list[Row] = []
        report = ["distance to the equilibrium at the start, at the end:"]
        for (game, averaged), path in paths.items():
            far = away(path, game)
            columns = {"game": game, "historical_averaging": self.weight * averaged}
            rows += [
                {**columns, "step": i, "x": short(x), "y": short(y), "distance": short(d)}
                for i, ((x, y), d) in enumerate(zip(path, far, strict=True))
                if i % EVERY == 0
            ]
            how = f"historical averaging {self.weight:g}" if averaged else "gradient descent"
            lost = "" if len(path) > self.steps else f"; diverged, after {len(path) - 1} steps"
            report.append(f"  {GAMES[game]}, {how}: {far[0]:.3g}, {far[-1]:.3g}{lost}")
        return Finding(self._draw(paths), rows, report)

    def _draw(self, paths: dict[tuple[str, int], Tensor]) -> bytes:
        with drawing.Picture("Historical averaging in two toy games", 7.6, 6.2) as picture:
            panels = picture.figure.subplots(2, 2)
            for (game, averaged), path in paths.items():
                plane, curve = panels[0, list(GAMES).index(game)], panels[1, list(GAMES).index(game)]
                label = f"historical averaging, weight {self.weight:g}" if averaged else "gradient descent"
                plane.plot(*path.T.numpy(), color=COLORS[averaged], lw=0.8, label=label)
                curve.semilogy(away(path, game).clamp_min(1e-9).numpy(), color=COLORS[averaged], lw=1)
                if averaged:
                    plane.plot(*EQUILIBRIA[game], "k+", ms=9, label="equilibrium")
                    plane.plot(*path[0].numpy(), "ko", ms=3, label="start")
                plane.set(title=GAMES[game], xlabel="x, minimizes V", ylabel="y, maximizes V")
                curve.yaxis.set_major_formatter("{x:g}")
                curve.set(xlabel="step", ylabel="distance to the equilibrium")
            handles, labels = panels[0, 0].get_legend_handles_labels()
            picture.figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return picture.png


def value(game: str, x: Tensor, y: Tensor) -> Tensor:
    """V(x, y)."""
    return x * y if game == "xy" else (torch.where(x < 0, x, x * x) - 1) * (y - 1)


def play(game: str, weight: float, lr: float, steps: int, distance: float) -> Tensor:
    """The path (steps + 1, 2) of (x, y), float64, until it diverges; weight: of historical averaging."""
    start = torch.tensor(EQUILIBRIA[game], dtype=torch.float64) + distance
    nets = [nn.ParameterList([nn.Parameter(v.clone())]) for v in start]
    (x,), (y,) = nets
    gan = SimpleNamespace(generator=nets[0], discriminator=nets[1])
    scene = Scene(gan, None, None, None, None)  # type: ignore[arg-type]
    averaging = HistoricalAveraging(weight, weight) if weight else None
    if averaging is not None:
        averaging.ready(gan)
    path = [start]
    for _ in range(steps):
        v = value(game, x, y)
        terms = (None, None) if averaging is None else (averaging.g_term(scene), averaging.d_term(scene))
        losses = [loss if term is None else loss + term for loss, term in zip((v, -v), terms, strict=True)]
        slopes = [
            torch.autograd.grad(loss, p, retain_graph=True)[0] for loss, p in zip(losses, (x, y), strict=True)
        ]
        with torch.no_grad():
            for p, slope in zip((x, y), slopes, strict=True):
                p.sub_(lr * slope)
        if averaging is not None:
            averaging.after_update(gan, "g")
            averaging.after_update(gan, "d")
        path.append(torch.stack([x.detach(), y.detach()]))
        if away(path[-1][None], game) > FAR * distance:
            break
    return torch.stack(path)


def short(number: Tensor) -> float:
    """To six digits."""
    return float(f"{float(number):.6g}")


def away(path: Tensor, game: str) -> Tensor:
    """Distances (N,) of a path (N, 2) to the equilibrium."""
    distances: Tensor = (path - torch.tensor(EQUILIBRIA[game], dtype=path.dtype)).norm(dim=1)
    return distances
