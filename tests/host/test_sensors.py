"""Sensors: a recording, lines of text, an IIO tree; and what they say when they fail."""

import os
import time
import zlib
from array import array
from pathlib import Path

import pytest
from sensor_kit import after_silence, domain, everything, run, standard_input

from edge_agent.config import Config
from edge_agent.cpython.sensors import open_sensor
from edge_agent.cpython.sensors.common import Cutter
from edge_agent.cpython.sensors.replay import ReplayFile, label_of
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, SensorError

ROOT = Path(__file__).resolve().parents[2]
REPLAY = ROOT / "models" / "data" / "watch_replay.bin"


@pytest.fixture(scope="module")
def watch():
    return Domain.load((ROOT / "models" / "watch.domain").read_bytes(), HostCrypto())


# ---- replay


def test_replay_gives_every_window_once_with_key_tags_and_label(watch):
    sensor = open_sensor({"kind": "replay", "path": str(REPLAY), "speed": 0, "person": 4}, watch)
    windows = run(everything(sensor))
    assert len(windows) == len(sensor) == 226
    assert len({w.key for w in windows}) == 226
    assert windows[0].key == "4/L/0/0000"
    assert {label_of(w.key) for w in windows} == set(range(7))
    for w in windows:
        assert isinstance(w.samples, array) and w.samples.typecode == "h"
        assert len(w.samples) == 128 * 6
        arm = "left-arm" if w.key[2] == "L" else "right-arm"
        assert w.tags == (watch.tags.index(arm),)


def test_replay_windows_overlap_by_half(watch):
    sensor = open_sensor({"kind": "replay", "path": str(REPLAY), "speed": 0, "person": 5}, watch)
    first, second = run(everything(sensor))[:2]
    assert first.samples[64 * 6 :] == second.samples[: 64 * 6]


def test_replay_selects_side_and_limit(watch):
    fields = {"kind": "replay", "path": str(REPLAY), "speed": 0, "person": [4, 10]}
    both = len(open_sensor(fields, watch))
    left = len(open_sensor({**fields, "side": "left"}, watch))
    right = len(open_sensor({**fields, "side": "right"}, watch))
    assert left + right == both and left and right
    assert len(open_sensor({**fields, "limit": 5}, watch)) == 5
    assert len(open_sensor({"kind": "replay", "path": str(REPLAY)}, watch)) == 2520


def test_replay_loops(watch):
    fields = {"kind": "replay", "path": str(REPLAY), "speed": 0, "limit": 3, "loop": True}

    async def five():
        sensor = open_sensor(fields, watch)
        return [(await sensor.read()).key for _ in range(5)]

    keys = run(five())
    assert keys[3:] == keys[:2]


def test_replay_keeps_time(watch):
    # hop 64 at 50 Hz is 1.28 s; 32 times as fast, four windows take three steps of 40 ms
    fields = {"kind": "replay", "path": str(REPLAY), "speed": 32, "limit": 4}
    started = time.monotonic()
    run(everything(open_sensor(fields, watch)))
    assert 0.11 < time.monotonic() - started < 2


def test_replay_reads_the_domain_that_a_configuration_names(tmp_path):
    fields = {
        "agent": "00" * 8,
        "key": "11" * 32,
        "domain": str(ROOT / "models" / "watch.domain"),
        "sensor": {"kind": "replay", "path": str(REPLAY), "limit": 2, "stall_s": 5},
    }
    assert len(open_sensor(Config(fields))) == 2


@pytest.mark.parametrize("damage", ["short", "magic", "flip", "index", "empty"])
def test_replay_refuses_damaged_files(tmp_path, watch, damage):
    data = bytearray(REPLAY.read_bytes())
    if damage == "short":
        del data[-1:]
    elif damage == "magic":
        data[0] ^= 1
    elif damage == "flip":
        data[70000] ^= 1
    elif damage == "empty":
        data.clear()
    else:  # an entry that points outside, under a right checksum
        at = 20 + int.from_bytes(data[14:16], "little") + 8
        data[at : at + 4] = (1 << 31).to_bytes(4, "little")
        data[16:20] = zlib.crc32(data[20:]).to_bytes(4, "little")
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(SensorError, match="damaged"):
        ReplayFile(path)


def test_replay_says_who_is_in_the_file(watch):
    with pytest.raises(SensorError, match="people 4, 5, 6, 7, 8, 9, 10"):
        open_sensor({"kind": "replay", "path": str(REPLAY), "person": 3}, watch)


def test_replay_of_nothing(watch):
    with pytest.raises(SensorError, match="No such file"):
        open_sensor({"kind": "replay", "path": "/nowhere/at/all"}, watch)


# ---- fields


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"kind": "radar"}, "sensor.kind"),
        ({"kind": "replay"}, "sensor.path"),
        ({"kind": "replay", "path": str(REPLAY), "speeed": 2}, "sensor.speeed"),
        ({"kind": "replay", "path": str(REPLAY), "speed": -1}, "sensor.speed"),
        ({"kind": "replay", "path": str(REPLAY), "side": "up"}, "sensor.side"),
        ({"kind": "replay", "path": str(REPLAY), "person": "four"}, "sensor.person"),
        ({"kind": "replay", "path": str(REPLAY), "tags": ["nope"]}, "sensor.tags"),
        ({"kind": "csv", "path": "-", "columns": [0]}, "sensor.columns"),
        ({"kind": "iio", "channels": ["temp"]}, "sensor.channels"),
    ],
)
def test_wrong_fields_are_named(watch, fields, where):
    with pytest.raises(ConfigError) as caught:
        open_sensor(fields, watch)
    assert caught.value.where == where


def test_a_domain_is_needed():
    with pytest.raises(ConfigError, match="domain"):
        open_sensor({"kind": "replay", "path": str(REPLAY)})


def test_replay_with_another_number_of_axes():
    with pytest.raises(SensorError, match="6 axes"):
        open_sensor({"kind": "replay", "path": str(REPLAY)}, domain(axes=3))


# ---- windows


@pytest.mark.parametrize("hop", [1, 3, 4, 7])
def test_cutter_agrees_with_slicing(hop):
    samples = list(range(100))
    cutter = Cutter(1, 4, hop)
    got = []
    for i in range(0, 100, 9):
        cutter.add(array("h", samples[i : i + 9]))
        while (window := cutter.take()) is not None:
            got.append(window.tolist())
    assert got == [samples[i : i + 4] for i in range(0, 97, hop)]


# ---- text lines


def test_csv_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x;y\n1,2\n\n3 4\r\n5;6\n7,8\n9,10\n11,12")
    sensor = open_sensor({"kind": "csv", "path": str(path), "tags": ["field"]}, domain())
    windows = run(everything(sensor))
    assert [w.samples.tolist() for w in windows] == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [5, 6, 7, 8, 9, 10, 11, 12],
    ]
    assert windows[0].tags == (2,) and windows[0].key == ""


def test_csv_columns_scale_and_limits(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("t1,0.5,1e9\n" * 4)
    fields = {"kind": "csv", "path": str(path), "columns": [2, 1], "scale": [1, -3]}
    (window,) = run(everything(open_sensor(fields, domain())))
    assert window.samples.tolist() == [32767, -2] * 4


def test_csv_bad_line_is_named_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2\n3,x\n3,4\n5,6\n7,8\n")

    async def both():
        sensor = open_sensor({"kind": "csv", "path": str(path)}, domain())
        with pytest.raises(SensorError, match="line 2"):
            await sensor.read()
        return await sensor.read()

    assert run(both()).samples.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_csv_allows_so_many_bad_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2\nnan,1\n3,inf\n3,4\n5,6\n7,8\n")
    good = open_sensor({"kind": "csv", "path": str(path), "bad_lines": 2}, domain())
    assert run(good.read()).samples.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    bad = open_sensor({"kind": "csv", "path": str(path), "bad_lines": 1}, domain())
    with pytest.raises(SensorError, match="line 3"):
        run(bad.read())


def test_csv_binary_file_is_refused():
    with pytest.raises(SensorError, match=r"text file|numbers"):
        run(open_sensor({"kind": "csv", "path": str(REPLAY)}, domain()).read())


def test_csv_missing_file_and_directory(tmp_path):
    with pytest.raises(SensorError, match="No such file"):
        open_sensor({"kind": "csv", "path": str(tmp_path / "no")}, domain())
    with pytest.raises(SensorError, match="directory"):
        open_sensor({"kind": "csv", "path": str(tmp_path)}, domain())


def test_csv_pipe_that_falls_silent_raises_and_may_go_on(tmp_path):
    samples = after_silence(tmp_path / "pipe", "csv", domain(), b"1,2\n3,4\n", b"5,6\n7,8\n")
    assert samples == [1, 2, 3, 4, 5, 6, 7, 8]


def test_csv_standard_input():
    with standard_input(b"1 2\n3 4\n5 6\n7 8\n"):
        windows = run(everything(open_sensor({"kind": "csv", "path": "-"}, domain())))
    assert [w.samples.tolist() for w in windows] == [[1, 2, 3, 4, 5, 6, 7, 8]]


# ---- IIO


@pytest.fixture
def tree(tmp_path):
    """/sys/bus/iio/devices as a kernel with two chips shows it."""
    thermometer = tmp_path / "iio:device0"
    thermometer.mkdir()
    (thermometer / "name").write_text("bmp280\n")
    (thermometer / "in_temp_raw").write_text("1\n")
    imu = tmp_path / "iio:device1"
    imu.mkdir()
    (imu / "name").write_text("bmi160\n")
    (imu / "in_accel_scale").write_text("0.002394\n")
    for axis, raw in zip("xyz", (4096, -100, 0), strict=True):
        (imu / f"in_accel_{axis}_raw").write_text(f"{raw}\n")
    (imu / "in_anglvel_x_raw").write_text("10\n")
    (imu / "in_anglvel_x_scale").write_text("0.001\n")
    (imu / "in_anglvel_x_offset").write_text("-4\n")
    return tmp_path


IMU = {"kind": "iio", "channels": ["accel_x", "accel_y", "anglvel_x"], "rate_hz": 1000}


def test_iio_reads_scale_offset_and_finds_the_device(tree):
    sensor = open_sensor({**IMU, "root": str(tree)}, domain(axes=3, window=4, hop=4))
    window = run(sensor.read())
    # 4096 counts per g, g = 9.80665 m/s2; (10 - 4) * 0.001 rad/s at 940 counts
    expected = [round(4096 * 0.002394 / 9.80665 * 4096), round(-100 * 0.002394 / 9.80665 * 4096), 6]
    assert window.samples.tolist() == expected * 4
    assert expected[0] == 4096


def test_iio_by_name_and_counts(tree):
    fields = {**IMU, "root": str(tree), "device": "bmi160", "counts": [1000, 1000, 1000]}
    window = run(open_sensor(fields, domain(axes=3, window=4, hop=4)).read())
    assert window.samples.tolist()[:3] == [9806, -239, 6]


def test_iio_says_what_there_is(tree):
    with pytest.raises(SensorError, match="iio:device1 bmi160"):
        open_sensor({**IMU, "root": str(tree), "device": "lis3dh"}, domain(axes=3))
    with pytest.raises(SensorError, match="without magn_x"):
        open_sensor(
            {"kind": "iio", "root": str(tree), "channels": ["magn_x"], "counts": 1}, domain(axes=1)
        )


def test_iio_without_any_device(tmp_path):
    with pytest.raises(SensorError, match="kernel driver"):
        open_sensor({**IMU, "root": str(tmp_path)}, domain(axes=3))


def test_iio_unplugged_and_plugged_in_again(tree):
    raw = tree / "iio:device1" / "in_accel_x_raw"

    async def scenario():
        sensor = open_sensor({**IMU, "root": str(tree)}, domain(axes=3, window=4, hop=4))
        await sensor.read()
        raw.rename(raw.with_suffix(".away"))
        with pytest.raises(SensorError, match="still connected"):
            await sensor.read()
        with pytest.raises(SensorError, match="no device has every channel"):
            await sensor.read()
        raw.with_suffix(".away").rename(raw)
        return await sensor.read()

    assert len(run(scenario()).samples) == 12


def test_iio_that_is_stuck(tree):
    fields = {**IMU, "root": str(tree), "stuck_s": 1, "rate_hz": 100}

    async def scenario():
        sensor = open_sensor(fields, domain(axes=3, window=4, hop=4))
        while True:
            await sensor.read()

    started = time.monotonic()
    with pytest.raises(SensorError, match="has not changed for 1 s"):
        run(scenario())
    assert time.monotonic() - started > 0.9


def test_iio_that_hangs(tree):
    raw = tree / "iio:device1" / "in_accel_x_raw"
    raw.unlink()
    os.mkfifo(raw)  # opening it blocks like a bus that hangs

    async def scenario():
        sensor = open_sensor({**IMU, "root": str(tree), "stall_s": 1}, domain(axes=3))
        with pytest.raises(SensorError, match="more than 1 s"):
            await sensor.read()
        with open(raw, "w") as end:  # lets the thread go
            end.write("1\n")

    run(scenario())


def test_iio_garbage(tree):
    (tree / "iio:device1" / "in_accel_x_raw").write_text("\n")
    with pytest.raises(SensorError, match="no whole number"):
        run(open_sensor({**IMU, "root": str(tree)}, domain(axes=3)).read())
