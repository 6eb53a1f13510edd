"""What URLs carry of secrets is in no message, no log line and no configuration."""

import logging
import pickle

import pytest

from mixer_dist.config import RunConfig
from mixer_dist.errors import ConfigError, DataError, redacted
from mixer_dist.logs import start_logging
from mixer_dist.sections import parse
from tests.tiny import tiny_config

SIGNED = [
    "https://h/x.tar?X-Amz-Credential=SECRET%2F2026&X-Amz-Signature=SECRET&partNumber=1",
    "https://h/x.tar?AWSAccessKeyId=SECRET&Signature=SECRET%3D&Expires=1",
    "https://h/x.tar?sv=2024&sig=SECRET",
    "https://storage.h/x?X-Goog-Signature=SECRET",
    "http://user:SECRET@h:8080/x",
    "http://user:SEC@RET@h/x",
    "http://:SECRET@h",
]
PLAIN = [
    "s3://bucket/key@2?versionId=3",
    "s3://arn:aws:s3:us-east-1:1:accesspoint/name/key@2",
    "http://127.0.0.1:9000/a@b",
    "hf://datasets/timm@main/x.tar",
]


@pytest.mark.parametrize("url", SIGNED)
def test_secrets_are_in_no_message_and_no_log_line(url, capsys):
    error = DataError(f"{url} was replaced")
    start_logging()
    logging.getLogger("mixer_dist.storage").warning("%s: %s", url, error)
    logged = capsys.readouterr().out
    for text in (str(error), repr(error), str(pickle.loads(pickle.dumps(error))), logged):
        assert "SEC" not in text and "RET" not in text
        assert "://" in text and "***" in text and "was replaced" in text


@pytest.mark.parametrize("url", PLAIN)
def test_other_urls_stay_as_they_are(url):
    assert redacted(f"not there: {url}, {url}") == f"not there: {url}, {url}"


@pytest.mark.parametrize(
    "place",
    [
        lambda url: {"run_dir": url},
        lambda url: {"data": {"train": [{"manifest": url}]}},
        lambda url: {"storage": {"s3://b": {"endpoint_url": url}}},
        lambda url: {"storage": {"s3://b": {"proxy": url}}},
        lambda url: {"storage": {url: {}}},
    ],
)
def test_a_configuration_with_a_secret_is_refused_without_showing_it(place):
    tree = tiny_config("single").model_dump(mode="json")
    for url in SIGNED:
        with pytest.raises(ConfigError, match="must hold no password or signature") as caught:
            parse(RunConfig, tree | place(url), "run.yaml")
        assert "SEC" not in str(caught.value) and "RET" not in str(caught.value)
    for url in PLAIN:
        parse(RunConfig, tree | place(url), "run.yaml")
