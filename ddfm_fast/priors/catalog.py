"""Public priors: where they are, how large, under which license, and what they take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_OPENAI = "https://openaipublic.blob.core.windows.net/"
_ADM = "guided-diffusion (Dhariwal and Nichol 2021), ADM of 256 channels"
_HEADS = {"num_head_channels": 64}


@dataclass(frozen=True)
class Known:
    """A prior that people can download.

    Attributes:
        name: As ``ddfm-fast prior download`` takes it.
        what: What it was trained on, and by whom.
        size: Side of its pictures, in pixels.
        license: "" if no license of its authors was found.
        where: An https URL, or owner/name on the Hugging Face Hub.
        by_hand: How to get it if neither is known.
        megabytes: Approximate size of the files; None if unknown.
        config: The ``config=`` (``--prior-config``) that it needs.
        sha256: The file's hash, if it is known.
    """

    name: str
    what: str
    size: int
    license: str = ""
    where: str = ""
    by_hand: str = ""
    megabytes: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def on_hub(self) -> bool:
        """Whether it is a folder of the Hugging Face Hub."""
        return bool(self.where) and "://" not in self.where

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def _adm(name: str, file: str, what: str) -> Known:
    return Known(name, f"{what}; {_ADM}", 256, "MIT", f"{_OPENAI}diffusion/jul-2021/{file}",
                 megabytes=2211)  # fmt: skip


def _improved(name: str, file: str, what: str, size: int, config: dict[str, Any]) -> Known:
    what = f"{what}; improved-diffusion (Nichol and Dhariwal 2021)"
    return Known(name, what, size, "MIT", f"{_OPENAI}diffusion/march-2021/{file}", config=config)


def _consistency(name: str, file: str, what: str, prediction: str) -> Known:
    what = f"{what}; consistency_models (Song et al. 2023)"
    return Known(name, what, 256, "MIT", f"{_OPENAI}consistency/{file}",
                 config={"prediction": prediction})  # fmt: skip


def _hub(repository: str, what: str, megabytes: int | None = None) -> Known:
    name = repository.partition("/")[2]
    return Known(name, what, 256, "Apache-2.0", repository, megabytes=megabytes)


_DDPM = "DDPM (Ho et al. 2020) for diffusers, 114 M parameters"
_VE = "NCSN++, variance exploding (Song et al. 2021), for diffusers"
_ROWS = (
    _adm("adm-256", "256x256_diffusion_uncond.pt", "ImageNet, everything: the paper's prior"),
    _adm("adm-bedroom", "lsun_bedroom.pt", "LSUN bedrooms"),
    _adm("adm-cat", "lsun_cat.pt", "LSUN cats"),
    _adm("adm-horse", "lsun_horse.pt", "LSUN horses"),
    _improved("improved-imagenet-64", "imagenet64_uncond_100M_1500K.pt", "ImageNet, small", 64,
              {"num_heads": 4, "noise_schedule": "cosine", "num_train_timesteps": 4000,
               "rescale_timesteps": True}),
    _improved("improved-bedroom", "lsun_uncond_100M_1200K_bs128.pt", "LSUN bedrooms", 256,
              {"num_heads": 1}),
    _consistency("edm-bedroom", "edm_bedroom256_ema.pt", "LSUN bedrooms, EDM", "edm"),
    _consistency("edm-cat", "edm_cat256_ema.pt", "LSUN cats, EDM", "edm"),
    _consistency("cd-bedroom", "cd_bedroom256_lpips.pt", "LSUN bedrooms, distilled: one step",
                 "consistency"),
    _consistency("cd-cat", "cd_cat256_lpips.pt", "LSUN cats, distilled: one step", "consistency"),
    _hub("google/ddpm-celebahq-256", f"CelebA-HQ faces; {_DDPM}", 455),
    _hub("google/ddpm-church-256", f"LSUN churches, buildings; {_DDPM}", 455),
    _hub("google/ddpm-bedroom-256", f"LSUN bedrooms; {_DDPM}", 455),
    _hub("google/ddpm-cat-256", f"LSUN cats; {_DDPM}", 455),
    _hub("google/ncsnpp-celebahq-256", f"CelebA-HQ faces; {_VE}"),
    _hub("google/ncsnpp-church-256", f"LSUN churches, buildings; {_VE}"),
    Known("places256", "Places365, scenes; RePaint, ADM of 256 channels", 256, "CC BY-NC-SA",
          by_hand="places256_300000.pt by the script of the repository RePaint"),
    Known("celeba256", "CelebA-HQ faces; RePaint, ADM of 256 channels", 256, "CC BY-NC-SA",
          by_hand="celeba256_250000.pt by the script of the repository RePaint"),
    Known("ffhq-p2", "FFHQ faces; P2 weighting (Choi et al. 2022), ADM of 128 channels, 93 M", 256,
          by_hand="ffhq_p2.pt by the links of the repository P2-weighting", config=_HEADS),
    Known("aapm-256", "CT slices of AAPM, one channel; DDS", 256,
          by_hand="AAPM256_1M.pt by the links of the repository DDS"),
)  # fmt: skip
CATALOG = {row.name: row for row in _ROWS}
"""by name"""


def known(name: str) -> Known:
    """Return the row for its name, its repository on the Hub, or the name of its file.

    Raises:
        ValueError: There is none.
    """
    for row in _ROWS:
        if name in (row.name, row.where, row.where.rpartition("/")[2]):
            return row
    raise ValueError(
        f"prior download: there is no {name[:200]!r}, expected one of {', '.join(CATALOG)}; other "
        "files are downloaded by hand, then given by their path"
    )
