# SPDX-License-Identifier: MIT
"""The benchmarks' own machinery: interleaving, records, tables, memory of a process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import __main__ as command_line
from benchmarks import memory, record, render, timing

ROOT = record.ROOT


def make_record(folder, date, suites, device="cpu"):
    made = record.facts(device) | {"date": date, "suites": suites}
    return record.write(made, folder)


def suite(value, title="Speed"):
    columns = [("case", "case", ""), ("median_ms", "median, ms", ".1f")]
    return {
        "title": title,
        "columns": columns,
        "rows": [{"case": "x", "median_ms": value}],
    }


def test_cases_take_turns():
    order = []
    cases = {name: timing.Case(lambda name=name: order.append(name)) for name in "abc"}
    timings = timing.compare(cases, repetitions=7, warmup=1)
    assert "".join(order) == "abc" + "abcbcacab" * 2 + "abc"
    assert all(len(t.seconds) == 7 for t in timings.values())
    with pytest.raises(ValueError, match="at least 7"):
        timing.compare(cases, repetitions=3)


def test_rows_are_paired():
    slow = timing.Timing([2.0, 40.0, 6.0, 8.0, 2.0, 2.0, 2.0])
    fast = timing.Timing([1.0, 20.0, 3.0, 4.0, 1.0, 1.0, 1.0])
    rows = timing.rows("case", {"slow": slow, "fast": fast}, "slow")
    assert [row["ratio"] for row in rows] == [1.0, 0.5]
    assert rows[0]["median_ms"] == 2000.0
    assert rows[0]["low_ms"] <= rows[0]["median_ms"] <= rows[0]["high_ms"]


def test_record_says_where_it_comes_from(tmp_path):
    path = make_record(tmp_path, "2026-01-02T03:04:05+00:00", {"sgd": suite(1.0)})
    made = json.loads(path.read_text())
    assert path.name == "cpu-20260102T030405.json"
    assert made["cores"] >= 1
    assert made["cpu"]
    assert made["versions"]["torch"]
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"bad\.json: not a benchmark record"):
        record.read_all(tmp_path)


def test_tables_come_from_the_newest_record(tmp_path):
    results = tmp_path / "results"
    make_record(
        results, "2026-01-01T00:00:00+00:00", {"a": suite(1.0), "b": suite(5.0)}
    )
    make_record(results, "2026-01-02T00:00:00+00:00", {"a": suite(2.25)})
    readme = tmp_path / "README.md"
    readme.write_text("top\n<!-- table:cpu/a -->\nold\n<!-- /table -->\nend\n")
    assert render.render(readme, results) == [tmp_path / "RESULTS.md", readme]
    text = readme.read_text()
    assert "| x | 2.2 |" in text
    assert "old" not in text
    assert text.startswith("top\n<!-- table:cpu/a -->\n**Speed**")
    assert text.endswith("<!-- /table -->\nend\n")
    assert "| x | 5.0 |" in (tmp_path / "RESULTS.md").read_text()
    assert render.render(readme, results) == []
    readme.write_text("<!-- table:cuda -->\n<!-- /table -->\n")
    with pytest.raises(ValueError, match="table:cuda: no record"):
        render.render(readme, results)


def test_peak_of_a_process():
    held = []
    peak = memory.peak_of(lambda: held.append(bytearray(b"x") * 50_000_000))
    assert 49e6 < peak < 60e6
    with pytest.raises(RuntimeError, match="no_such_module"):
        memory.in_fresh_process("no_such_module", {})


def test_cases_for_pytest_benchmark_are_found():
    """Also where it is not installed: each file is skipped after its imports."""
    words = ["-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *words, "benchmarks"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode in (0, 5), done.stdout
    for name in ("loader", "mosaic", "sgd", "step"):
        assert f"test_{name}.py" in done.stdout


def test_the_extra_for_pytest_benchmark_has_what_pytest_s_settings_need():
    text = (ROOT / "pyproject.toml").read_text()
    settings = text[text.index("[tool.pytest.ini_options]") :]
    assert "timeout = " in settings and "--strict-config" in settings
    extra = re.search(r"^benchmarks = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert extra is not None
    assert {"pytest-benchmark", "pytest-timeout"} <= set(
        re.findall(r'"([\w-]+)', extra[1])
    )


def test_a_picture_has_the_cases_of_earlier_records_too() -> None:
    def one(*cases: str) -> dict[str, Any]:
        rows = [{"case": case, "images_per_s": 1.0, "of": cases} for case in cases]
        return {"device": "gpu", "suites": {"step": {"title": "T", "rows": rows}}}

    records = [one("batch 8", "batch 128"), one("batch 16", "batch 8"), one("batch 64")]
    found = render.all_cases(records, "gpu", "step")["rows"]
    assert [(row["case"], len(row["of"])) for row in found] == [
        ("batch 8", 2),
        ("batch 16", 2),
        ("batch 64", 1),
        ("batch 128", 2),
    ]
    assert [row["of"][0] for row in found][:2] == ["batch 16", "batch 16"]


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["cpu", "--only", "plan", "--out", "{}/file"],
            "--out: '.*/file' is no folder",
        ),
        (["gpu", "--out", "{}/file/in"], "--out: '.*/file/in' is no folder"),
        (
            ["gpu", "--out", "{}", "--minutes", "nan"],
            "--minutes: is 'nan', must be fin",
        ),
        (["gpu", "--out", "{}", "--minutes", "-1"], "--minutes: is '-1', must be fin"),
        (
            ["gpu", "--out", "{}", "--minutes", "nine"],
            "--minutes: is 'nine', must be fi",
        ),
    ],
)
def test_arguments_are_refused_before_anything_is_measured(
    words, message, tmp_path, monkeypatch, capsys
):
    """A record that can't be written would be lost after all was measured."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        "sys.argv", ["benchmarks", *(word.format(tmp_path) for word in words)]
    )
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
