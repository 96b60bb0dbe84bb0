"""DDFM on one page: Algorithm 1 of the paper (ICCV 2023, arXiv 2303.06840), for one image.

The rest of the package is a faster version of this page. i: infrared, v: visible, luma in [−1, 1];
x = f̃₀ − v, y = i − v; m, n: latent variances of y − x and x, of means γ and ρ; ∇: differences;
u: the split ∇k; ψ, η: weight of the variation, coupling of the split. ``paper`` has the equations,
``official`` the same lines as the authors' code has them, each departure marked "quirk".
"""

import torch
from torch.fft import fft2, fftfreq, ifft2
from torch.nn.functional import pad


@torch.no_grad()
def ddfm(prior, i, v, noise, *, variant="official", sampler="ddim", steps=100, psi=0.5, eta=0.001):
    """Return RGB [3, H, W], whose luma is the fused picture (not stretched), of planes i, v [H, W].

    ``prior(f [1, 3, H, W], t [1])`` is ε. ``noise`` yields normal deviates [3, H, W]: f_T and, for
    "ddpm", z of every step. The paper has variant "paper", sampler "ddpm", η = 0.1.
    """
    rectify = {"official": official, "paper": paper}[variant]
    ddim = {"ddim": True, "ddpm": False}[sampler]
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # β of the trained process
    strides = [0.0] + [999 / (steps - 1) for _ in range(steps - 1)]
    t = torch.tensor(strides, dtype=torch.float64).cumsum(0).round().long()  # 0 … 999, evenly
    alpha_bar = torch.cat([torch.ones(1), (1 - beta).cumprod(0)[t]])  # ᾱ = 1, then ᾱ_t = Π(1 − β)
    noise, state = iter(noise), (i.new_zeros(2, *i.shape), 1.0, 1.0)  # u = 0, γ = ρ = 1
    f = next(noise)  # f_T ~ N(0, I)
    for s in range(steps, 0, -1):
        a, a_prev = alpha_bar[s], alpha_bar[s - 1]  # ᾱ_t, ᾱ_{t−1}
        eps = prior(f[None], t[s - 1 : s].to(f.device))[0, :3]  # ε(f_t, t), no variance half
        f0 = (f / a.sqrt() - (1 / a - 1).sqrt() * eps).clamp(-1, 1)  # predict: f̃₀
        f0, *state = rectify(f0, i, v, *state, psi, eta)  # rectified: f̂₀, by one EM iteration
        if ddim:  # step: DDIM, σ = 0, with the ε that leads from f_t to f̂₀
            eps = (f - a.sqrt() * f0) / (1 - a).sqrt()
            f = a_prev.sqrt() * f0 + (1 - a_prev).sqrt() * eps
        else:  # step: DDPM, the posterior of f̂₀ with β_t = 1 − ᾱ_t/ᾱ_{t−1}
            b = 1 - a / a_prev
            f = (a_prev.sqrt() * b * f0 + (1 - b).sqrt() * (1 - a_prev) * f) / (1 - a)
            f = f + (b * (1 - a_prev) / (1 - a)).sqrt() * next(noise)
    return f


def solve(rhs, u):
    """Solve (I + ∇ᵀ∇)k = rhs + ∇ᵀu for k by FFT; a forward difference is e^{iω} − 1 there."""
    w_y, w_x = (2j * torch.pi * fftfreq(n, dtype=rhs.dtype, device=rhs.device) for n in rhs.shape)
    d_y, d_x = w_y.exp()[:, None] - 1, w_x.exp() - 1  # the spectrum of ∇
    rhs = fft2(rhs) + d_x.conj() * fft2(u[0]) + d_y.conj() * fft2(u[1])  # rhs + ∇ᵀu
    return ifft2(rhs / (1 + d_x.abs() ** 2 + d_y.abs() ** 2)).real  # (I + ∇ᵀ∇)⁻¹


def paper(f0, i, v, u, gamma, rho, psi, eta):
    """Return f̂₀ of f̃₀, and u, γ, ρ for the next step: the paper's equations."""
    r, g, b = f0
    f = 0.299 * r + 0.587 * g + 0.114 * b  # luma of f̃₀: BT.601, full range
    x, y = f - v, i - v  # x = f̃₀ − v, y = i − v
    dm, dn = (y - x).abs().clamp(1e-6), x.abs().clamp(1e-6)  # |y − x| and |x|, kept off 1/0
    m_bar, n_bar = (2 / gamma) ** 0.5 / dm, (2 / rho) ** 0.5 / dn  # E-step: E[1/m], E[1/n]
    gamma = (dm * (gamma / 2) ** 0.5 + gamma / 2).mean()  # γ = mean(|y − x|√(γ/2) + γ/2)
    rho = (dn * (rho / 2) ** 0.5 + rho / 2).mean()  # ρ = mean(|x|√(ρ/2) + ρ/2)
    k = solve(x, u)  # (I + ∇ᵀ∇)k = x + ∇ᵀu
    u = eta / (2 * psi + eta) * torch.stack([k.roll(-1, 1) - k, k.roll(-1, 0) - k])  # η/(2ψ+η)·∇k
    x = (2 * m_bar * y + eta * k) / (2 * m_bar + 2 * n_bar + eta)  # x = (2m̄y+ηk)/(2m̄+2n̄+η)
    return f0 + (x + v - f), u, gamma, rho  # f̂₀ has luma x + v and the chroma of f̃₀


def official(f0, i, v, u, gamma, rho, psi, eta):
    """Return the same as the authors' code does, which gives NaN where y − x is exactly −1e-6."""
    r, g, b = f0
    f = (16 + 65.481 * r + 128.553 * g + 24.966 * b) / 255  # quirk: studio range of RGB in [−1, 1]
    x, y = f - v, i - v  # x = f̃₀ − v, y = i − v
    m_bar = (2 / gamma) ** 0.5 / (y - x + 1e-6).abs()  # E-step; quirk: 1e-6 moves the pole
    n_bar = ((2 / rho / (x**2 + 1e-6)) ** 0.5).minimum(2 * m_bar)  # quirks: 1e-6, and n̄ ≤ 2m̄
    gamma = (1 / (m_bar + 1e-10) + gamma / 2).mean()  # γ, as |y − x|√(γ/2) = 1/m̄
    rho = (1 / (n_bar + 1e-10) + rho / 2).mean()  # ρ, likewise
    k = solve(y - x, u)  # quirk: y − x for x
    right, below = pad(k[:, 1:], (0, 1)), pad(k[1:], (0, 0, 0, 1))  # quirk: 0 beyond the edge
    u = eta / (2 * psi + eta) * torch.stack([k - right, k - below])  # quirk: −∇k, its last is k
    x = (2 * m_bar * y + eta * (y - k)) / (2 * m_bar + 2 * n_bar + eta)  # quirk: y − k for k
    return f0 + 255 / 219 * (i - x - f), u, gamma, rho  # quirk: i − x; 255/219 of RGB to Y
