"""The benchmarks of the prior: their logic, on tiny networks; what they measure is not tested."""

from __future__ import annotations

import json

import pytest
import torch

from bench import gpu_prior, prior


def test_every_part_of_the_gpu_benchmark_runs(tmp_path):
    assert gpu_prior.main(["--tiny", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "prior.json").read_text())
    assert found["failed"] == {} and found["left_out"] == []
    assert {"rates", "layers", "norms", "convolutions", "loop 512x640x1 bfloat16"} <= found.keys()
    assert {f"forward 512x640x1 {p}" for p in gpu_prior.FIRST} <= found.keys()
    text = (tmp_path / "prior.md").read_text()
    assert "| forward 512x640x1 bfloat16 | ours, graph |" in text
    assert "| compiled 512x640x1 bfloat16 | compiled |" in text


def test_a_failed_part_is_kept_and_the_next_one_runs(tmp_path):
    bench = gpu_prior.Bench(tmp_path, 100, True, 1)

    def fails():
        raise RuntimeError("no kernel image")

    bench.attempt("bad", fails)
    bench.attempt("good", lambda: {"ms": 1.0})
    bench.end = 0
    bench.attempt("late", fails)
    found = json.loads((tmp_path / "prior.json").read_text())
    assert found["failed"] == {"bad": "RuntimeError: no kernel image"} and found["good"]
    assert bench.found["left_out"] == ["late"]


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_prior.main(["--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == "no GPU: skipped\n" and not (tmp_path / "none").exists()


def test_convolutions_of_a_forward_are_those_of_the_network(tmp_path):
    shapes = gpu_prior.convolution_shapes(gpu_prior.Bench(tmp_path, 1, True, 1))
    assert shapes[3, 32, 3, 32, 32] == 1 and shapes[32, 3, 3, 32, 32] == 1
    assert all(count > 0 for count in shapes.values())


def test_embedded_reference_is_the_embedded_prior():
    unet, reference = prior.networks()["embedded"]
    x, t = torch.randn(1, 3, 32, 48), torch.tensor([321])
    with torch.no_grad():
        torch.testing.assert_close(reference(x, t), unet(x, t), rtol=1e-4, atol=1e-4)


def test_wrong_results_are_not_timed(monkeypatch):
    real = prior.networks()["embedded"]
    wrong = {"embedded": (real[0], lambda x, t: real[1](x, t) + 1)}
    monkeypatch.setattr(prior, "networks", lambda: wrong)
    with pytest.raises(RuntimeError, match="float32 differs by .*; no time is told"):
        prior.forward("embedded", (32, 32), 1, False)


def test_paper(monkeypatch):
    monkeypatch.setattr(prior, "PAPER_SIZES", [(256, 256), (512, 640)])
    text = "\n".join(prior.paper())
    assert "| 512x640 | ours | 11.44 |" in text and "| H100 SXM |" in text
    assert "| 512x640 | official module, float32 | 11.44 |" in text
    assert "| output_blocks.17.0 |" in text and "| 3x3 convolution | 86 |" in text
