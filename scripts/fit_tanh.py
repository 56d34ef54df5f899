"""The rational function that the DyT kernels use for tanh: `python scripts/fit_tanh.py` prints its coefficients.

tanh(u) = u * P(u^2) / Q(u^2) with P and Q of degree 4, on [0, 8], its largest relative error as small as can be: by
Remez's exchange, in 60 digits. Beyond 8 the quotient goes on to grow past one, so that a clamp ends it.
"""

from __future__ import annotations

import mpmath as mp

DEGREE = 4
END = 8
GRID = 4000


def target(u: mp.mpf) -> mp.mpf:
    return mp.tanh(u) / u if u else mp.mpf(1)


def quotient(solution: list[mp.mpf], u: mp.mpf) -> mp.mpf:
    z = (u / END) ** 2
    above = sum(solution[k] * z**k for k in range(DEGREE + 1))
    return above / (1 + sum(solution[DEGREE + k] * z**k for k in range(1, DEGREE + 1)))


def level(points: list[mp.mpf]) -> tuple[list[mp.mpf], mp.mpf]:
    """The quotient whose relative error is of one size and of alternating sign at the points, and that size."""
    size, solution, error = len(points), None, mp.mpf(0)
    for _ in range(20):  # the error multiplies Q, so it is found by repetition
        matrix, right = mp.matrix(size, size), mp.matrix(size, 1)
        for row, u in enumerate(points):
            z, value = (u / END) ** 2, target(u)
            below = 1 if solution is None else 1 + sum(solution[DEGREE + k] * z**k for k in range(1, DEGREE + 1))
            for k in range(DEGREE + 1):
                matrix[row, k] = z**k
            for k in range(1, DEGREE + 1):
                matrix[row, DEGREE + k] = -value * z**k
            matrix[row, size - 1] = -value * below * (-1) ** row
            right[row] = value
        answer = mp.lu_solve(matrix, right)
        solution, before, error = [answer[i] for i in range(size - 1)], error, answer[size - 1]
        if abs(error - before) <= abs(error) * mp.mpf("1e-12"):
            break
    return solution, error


def fit() -> tuple[list[mp.mpf], list[mp.mpf], mp.mpf]:
    """P, Q (lowest power first) and the largest relative error.

    Raises:
        RuntimeError: the exchange did not settle.
    """
    size = 2 * DEGREE + 2
    grid = [mp.mpf(END) * i / GRID for i in range(GRID + 1)]
    values = [target(u) for u in grid]
    points = [END * ((1 - mp.cos(mp.pi * i / (size - 1))) / 2) ** mp.mpf("1.3") for i in range(size)]
    for _ in range(40):
        solution, error = level(points)
        errors = [quotient(solution, u) / value - 1 for u, value in zip(grid, values)]
        peaks = [0]
        for i, e in enumerate(errors):
            if (e > 0) != (errors[peaks[-1]] > 0):
                peaks.append(i)
            elif abs(e) > abs(errors[peaks[-1]]):
                peaks[-1] = i
        largest = max(abs(e) for e in errors)
        if largest < abs(error) * mp.mpf("1.01"):
            above = [solution[k] / mp.mpf(END) ** (2 * k) for k in range(DEGREE + 1)]
            below = [solution[DEGREE + k] / mp.mpf(END) ** (2 * k) for k in range(1, DEGREE + 1)]
            return above, [mp.mpf(1), *below], largest
        while len(peaks) > size:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        points = [grid[i] for i in peaks]
    raise RuntimeError("the exchange did not settle")


if __name__ == "__main__":
    mp.mp.dps = 60
    above, below, error = fit()
    print("P:", ", ".join(mp.nstr(value, 12) for value in above))
    print("Q:", ", ".join(mp.nstr(value, 12) for value in below))
    print("largest relative error:", mp.nstr(error, 4))
