"""Sizes as people write them."""

import pytest

from llmctl.errors import ConfigError
from llmctl.io.sizes import parse_bytes, parse_bytes_or_share

BYTES = {
    "5GB": 5 * 10**9, "2GiB": 2**31, "500MB": 500 * 10**6, "1.5 GB": 1_500_000_000, "1.5mb": 1_500_000, "0.5MiB": 2**19,
    "2 KB": 2000, "3kib": 3072, "10B": 10, "10 B": 10, " 7 ": 7, "300": 300, "0.1GB": 10**8, ".5kB": 500, 4096: 4096,
    "2.3GB": 2_300_000_000, "1234567890123456789": 1234567890123456789,
}  # fmt: skip
SHARES = {"30%": 0.3, "0.5": 0.5, 0.25: 0.25, "100%": 1.0, "1.0": 1.0, "2.5 %": 0.025}
NEITHER = (
    "", "much", "GB", "0", 0, "0B", "-1GB", -1, "-2GiB", "5TB", "2 TiB", "nan", "nanGB", "infGB", "1.5", "0.0", "0%", "120%",
    "1e9", "2,5GB", "5G", "0.0001KB", True, "٣GB", float("inf"),
)  # fmt: skip


@pytest.mark.parametrize(("value", "size"), BYTES.items())
def test_bytes_are_read_in_every_form(value, size):
    for parse in (parse_bytes, parse_bytes_or_share):
        found = parse(value)
        assert found == size and isinstance(found, int)


@pytest.mark.parametrize(("value", "share"), SHARES.items())
def test_a_share_is_read_only_where_it_makes_sense(value, share):
    found = parse_bytes_or_share(value)
    assert found == share and isinstance(found, float)
    with pytest.raises(ConfigError, match="is not a size; write 2GB, 1.5GiB, 500MB or a number of bytes"):
        parse_bytes(value)


@pytest.mark.parametrize("value", NEITHER)
def test_what_is_neither_is_refused_with_its_place_and_what_is_allowed(value):
    with pytest.raises(
        ConfigError, match=r"^--memory .* is not a size; write 2GB, 1.5GiB, 500MB or a number of bytes$"
    ):
        parse_bytes(value, "--memory ")
    with pytest.raises(ConfigError, match=r"^kv=.* is not a size; write .*, or a share such as 30% or 0\.3$"):
        parse_bytes_or_share(value, "kv=")
