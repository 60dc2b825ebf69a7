"""Log lines: form, levels, outputs."""

import json
import os
import re

import pytest

from etcdfast import log


@pytest.fixture(autouse=True)
def restored():
    yield
    log.configure()


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "log"

    def _configure(level="info", form="json"):
        log.configure(level, (str(path),), form)
        return lambda: path.read_text().splitlines()

    return _configure


def test_a_line_is_json_in_etcds_order(written):
    lines = written()
    log.info("ready", member_id="8e9e", urls=("a", "b"), error=ValueError("no"))
    (line,) = lines()
    assert re.fullmatch(
        r'\{"level":"info","ts":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z","caller":"[^"]*test_log\.py:\d+",'
        r'"msg":"ready","member-id":"8e9e","urls":\["a","b"\],"error":"no"\}',
        line,
    )


def test_console_form(written):
    lines = written(form="console")
    log.warn("slow", took="1s")
    log.error("plain")
    first, second = lines()
    assert first.split("\t")[1:] == ["warn", first.split("\t")[2], "slow", '{"took": "1s"}']
    assert second.split("\t")[3:] == ["plain"]


@pytest.mark.parametrize(
    "level, shown", [("debug", 5), ("info", 4), ("WARN", 3), ("error", 2), ("fatal", 1), ("panic", 1)]
)
def test_levels(written, level, shown):
    lines = written(level)
    for write in (log.debug, log.info, log.warn, log.error, log.fatal):
        write("x")
    names = [json.loads(line)["level"] for line in lines()]
    assert names == ["debug", "info", "warn", "error", "fatal"][5 - shown :]


def test_any_text_is_one_line(written):
    lines = written()
    log.info("a\nb\ud800", value=b"\xff", other=object)
    (line,) = lines()
    assert json.loads(line)["msg"].startswith("a\nb")


def test_a_file_that_cannot_be_opened_is_one_line_for_the_user(tmp_path):
    with pytest.raises(log.LogError, match="^couldn't open sink .*/no/log: no such file or directory$"):
        log.configure(outputs=(str(tmp_path / "no" / "log"),))


def test_a_closed_output_does_not_stop_the_caller(written):
    written()
    os.close(log._outputs[0])
    log.info("nobody hears this")
