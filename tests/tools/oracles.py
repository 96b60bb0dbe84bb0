"""Slow, independent transcriptions that the fast code is checked against; NumPy, float64.

They follow the equations (and the authors' published behavior) operation by operation: four
complex FFTs, explicit u, color conversion there and back. They share no code with ddfm_fast.
"""

from __future__ import annotations

import numpy as np

RGB_TO_STUDIO = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
)
STUDIO_OFFSET = np.array([16.0, 128.0, 128.0])


def otf(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectra of the periodic forward differences along x and y."""
    dx, dy = np.zeros((2, height, width))
    dx[0, 0] += -1
    dx[0, -1] += 1
    dy[0, 0] += -1
    dy[-1, 0] += 1
    return np.fft.fft2(dx), np.fft.fft2(dy)


def solve_k(base, u1, u2):
    """Solve (I + ∇ᵀ∇) k = base + ∇ᵀu with complex transforms throughout."""
    k1, k2 = otf(*base.shape)
    numerator = np.fft.fft2(base) + np.conj(k1) * np.fft.fft2(u1) + np.conj(k2) * np.fft.fft2(u2)
    return np.fft.ifft2(numerator / (1 + abs(k1) ** 2 + abs(k2) ** 2)).real


def official_state(shape) -> dict:
    zero, one = np.zeros(shape), np.ones(shape)
    return {"C": one, "D": one, "F1": zero, "F2": zero, "H": zero, "tau_a": 1.0, "tau_b": 1.0}


def official_em(f, i, v, state, psi, eta):
    """Run the authors' EM step on one plane [H, W]."""
    y, x = i - v, f - v
    d = np.sqrt(2 / state["tau_b"] / (x**2 + 1e-6))
    c = np.sqrt(2 / state["tau_a"] / (y - x + 1e-6) ** 2)
    d = np.where(d > 2 * c, 2 * c, d)
    tau_b = np.mean(1 / (d + 1e-10) + state["tau_b"] / 2)
    tau_a = np.mean(1 / (c + 1e-10) + state["tau_a"] / 2)
    h = solve_k(y - x, state["F1"], state["F2"])
    a1, a2 = h.copy(), h.copy()
    a1[:, :-1] -= h[:, 1:]
    a2[:-1] -= h[1:]
    ratio = eta / (2 * psi + eta)
    x = (2 * c * y + eta * (y - h)) / (2 * c + 2 * d + eta)
    return i - x, {
        "C": c,
        "D": d,
        "F1": ratio * a1,
        "F2": ratio * a2,
        "H": h,
        "tau_a": tau_a,
        "tau_b": tau_b,
    }


def paper_em(f, i, v, state, psi, eta, *, printed=False, update_scales=True, floor=1e-6):
    """Run the paper's EM iteration on one plane; ``printed``: with the E-step as it is printed."""
    y, x = i - v, f - v
    dm, dn = np.maximum(abs(y - x), floor), np.maximum(abs(x), floor)
    gamma, rho = state["tau_a"], state["tau_b"]
    m, n = np.sqrt(2 / gamma) / dm, np.sqrt(2 / rho) / dn
    if printed:
        m, n = np.sqrt(2 * dm**2 / gamma), np.sqrt(2 * dn**2 / rho)
    if update_scales:
        state = state | {
            "tau_a": np.mean(dm * np.sqrt(gamma / 2) + gamma / 2),
            "tau_b": np.mean(dn * np.sqrt(rho / 2) + rho / 2),
        }
    k = solve_k(x, state["F1"], state["F2"])
    ratio = eta / (2 * psi + eta)
    u1, u2 = (ratio * (np.roll(k, -1, axis) - k) for axis in (1, 0))
    x = (2 * m * y + eta * k) / (2 * m + 2 * n + eta)
    return x + v, state | {"C": m, "D": n, "F1": u1, "F2": u2, "H": k}


def gradient_em(f, i, v, state, psi, eta, floor=1e-6):
    """Run one EM iteration of the variant "gradient" on one plane; u in F1 and F2."""
    y, x = i - v, f - v
    qx, qy = np.zeros((2, *y.shape))
    for r in range(y.shape[0]):
        for c in range(y.shape[1]):
            below, right = (r + 1) % y.shape[0], (c + 1) % y.shape[1]
            gi = np.array([i[r, right] - i[r, c], i[below, c] - i[r, c]])
            gv = np.array([v[r, right] - v[r, c], v[below, c] - v[r, c]])
            share = 0.75 if (gi**2).sum() > (gv**2).sum() else 0.25
            qx[r, c], qy[r, c] = share * (gi - gv)
    pull = 2 * psi / (2 * psi + eta)
    if not state["H"].any():
        state = state | {"F1": pull * qx, "F2": pull * qy}
    m = np.sqrt(2.0) / np.maximum(abs(y) / 2, floor)
    k = solve_k(x, state["F1"], state["F2"])
    u1, u2 = (pull * q + (1 - pull) * (np.roll(k, -1, axis) - k) for q, axis in ((qx, 1), (qy, 0)))
    x = (2 * m * y + eta * k) / (4 * m + eta)
    return x + v, state | {"F1": u1, "F2": u2, "H": k}


def replace_luma(rgb, new_luma, *, official):
    """Swap the luma of [3, H, W] through a full color conversion and its inverse."""
    if official:
        matrix, offset = RGB_TO_STUDIO / 255, STUDIO_OFFSET / 255
    else:
        kr, kb = 0.299, 0.114
        luma = np.array([kr, 1 - kr - kb, kb])
        matrix = np.stack(
            [luma, ([0, 0, 1] - luma) / (2 - 2 * kb), ([1, 0, 0] - luma) / (2 - 2 * kr)]
        )
        offset = np.zeros(3)
    ycc = np.einsum("dc,chw->dhw", matrix, rgb) + offset[:, None, None]
    old = ycc[0].copy()
    if new_luma is None:
        return old
    ycc[0] = new_luma
    return np.einsum("dc,chw->dhw", np.linalg.inv(matrix), ycc - offset[:, None, None])


def ddim_loop(eps, x, i, v, schedule, *, variant, psi, eta, steps=None):
    """Run a reverse loop, DDIM with η = 0, on one image [3, H, W]; ``schedule`` = (map, ᾱ)."""
    timesteps, alpha = schedule
    state = official_state(i.shape)
    for s in reversed(range(len(timesteps))):
        previous = alpha[s - 1] if s else 1.0
        noise = eps(x, timesteps[s])
        x0 = np.clip(x / np.sqrt(alpha[s]) - np.sqrt(1 / alpha[s] - 1) * noise, -1, 1)
        f = replace_luma(x0, None, official=variant == "official")
        if variant == "official":
            fused, state = official_em(f, i, v, state, psi, eta)
        elif variant == "gradient":
            fused, state = gradient_em(f, i, v, state, psi, eta)
        else:
            fused, state = paper_em(f, i, v, state, psi, eta, printed=variant == "printed")
        x0 = replace_luma(x0, fused, official=variant == "official")
        noise = (x / np.sqrt(alpha[s]) - x0) / np.sqrt(1 / alpha[s] - 1)
        x = np.sqrt(previous) * x0 + np.sqrt(1 - previous) * noise
    return x
