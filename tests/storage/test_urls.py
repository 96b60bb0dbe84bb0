"""URLs are distinguished from local paths, also if a Path has swallowed a slash."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddfm_fast.storage.urls import as_url, join, name_of, parent, schemes

URLS = [
    "s3://bucket/ir/0001.png",
    "gs://bucket",
    "memory://a/b.png",
    "file:///tmp/a.png",
    "https://host/a.png?X-Amz-Date=1&b=c",
    "zip://ir/0001.png::s3://bucket/a.zip",
    "zip://::s3://bucket/a.zip",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_known_as_text_and_as_a_path(url):
    assert as_url(url) == url
    assert as_url(Path(url)) == url


@pytest.mark.parametrize(
    "place", ["a.png", "/tmp/a.png", "C:/a.png", "s3:", "a/s3://b", "", None, 3]
)
def test_what_is_no_url(place):
    assert as_url(place) is None
    if isinstance(place, str) and place:
        assert as_url(Path(place)) is None


def test_a_local_path_that_is_there_is_no_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    assert as_url(Path("s3:/bucket")) is None
    assert as_url("s3://bucket") == "s3://bucket"


def test_parts():
    chained = "zip://ir/0001.png::s3://bucket/a.zip"
    assert name_of(chained) == "0001.png"
    assert name_of("https://host/x/a.png?size=3/4#top") == "a.png"
    assert name_of("zip://::s3://bucket/a.zip") == ""
    assert parent(chained) == "zip://ir::s3://bucket/a.zip"
    assert parent("s3://bucket/list.csv") == "s3://bucket"
    assert join("s3://bucket/out/", "a/b.png") == "s3://bucket/out/a/b.png"
    assert join("zip://::s3://bucket/a.zip", "ir/1.png") == "zip://ir/1.png::s3://bucket/a.zip"
    assert join("s3://bucket", "gs://other/a.png") == "gs://other/a.png"
    assert schemes(chained) == ["zip", "s3"]
