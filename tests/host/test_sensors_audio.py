"""Windows of sound: WAV files, raw samples from a pipe, and what is no such thing."""

import time
import wave
from array import array
from pathlib import Path

import pytest
from sensor_kit import after_silence, domain, everything, run, standard_input

from edge_agent.cpython.sensors import open_sensor
from edge_agent.errors import ConfigError, SensorError

ONE = domain(axes=1)
COUNT = 10_000  # more than is read at a time
SOUND = array("h", [(n * 7919) % 65536 - 32768 for n in range(COUNT)])


def recording(path, channels=1, width=2, rate=16000, sound=SOUND):
    """Channel k has the samples turned by k."""
    mixed = array("h")
    for n in range(len(sound)):
        mixed.extend(sound[(n + k) % len(sound)] for k in range(channels))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        data = mixed.tobytes()
        file.writeframes(data if width == 2 else data[: len(data) // width * width])
    return str(path)


def windows(**fields):
    return run(everything(open_sensor({"kind": "audio", **fields}, ONE)))


def test_a_file_gives_every_window_with_its_number(tmp_path):
    got = windows(path=recording(tmp_path / "bell.wav"), speed=0, tags=["field"])
    assert [w.samples.tolist() for w in got] == [
        SOUND[i : i + 4].tolist() for i in range(0, COUNT - 3, 2)
    ]
    assert got[0].key == "bell.wav/0000" and got[-1].key == "bell.wav/4998"
    assert {w.tags for w in got} == {(2,)}


def test_one_channel_of_several(tmp_path):
    path = recording(tmp_path / "s.wav", channels=3)
    got = windows(path=path, speed=0, channel=2)
    assert got[0].samples.tolist() == SOUND[2:6].tolist() and len(got) == 4999
    with pytest.raises(ConfigError, match="of 3 from 0 on"):
        windows(path=path, channel=3)


def test_a_file_keeps_time(tmp_path):
    path = recording(tmp_path / "s.wav", rate=8000, sound=SOUND[:1000])
    started = time.monotonic()
    assert len(windows(path=path, rate_hz=8000, speed=0.5)) == 499
    # 498 steps of 2 samples at half of 8,000 a second
    assert 0.24 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"rate": 44100}, "44100 samples a second, not 16000"),
        ({"width": 1}, "8 bits a sample"),
        ({"width": 3}, "24 bits a sample"),
    ],
)
def test_other_rates_and_widths_are_refused_and_the_way_out_named(tmp_path, how, what):
    with pytest.raises(SensorError, match=what) as refused:
        windows(path=recording(tmp_path / "s.wav", **how))
    assert "-ar 16000" in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"OggS" * 20, b"RIFF\0\0\0\0WAVEfmt "])
def test_what_is_no_wav_file(tmp_path, data):
    path = tmp_path / "s.wav"
    path.write_bytes(data)
    with pytest.raises(SensorError, match="no WAV file"):
        windows(path=str(path))


def test_a_file_of_floats(tmp_path):
    path = tmp_path / "s.wav"
    data = bytearray(Path(recording(path)).read_bytes())
    data[20] = 3  # WAVE_FORMAT_IEEE_FLOAT
    path.write_bytes(data)
    with pytest.raises(SensorError, match="no WAV file"):
        windows(path=str(path))


def test_every_truncation_of_a_file_is_refused_or_gives_what_is_there(tmp_path):
    whole = Path(recording(tmp_path / "s.wav", sound=SOUND[:40])).read_bytes()
    most = 0
    for size in range(len(whole)):
        (tmp_path / "cut.wav").write_bytes(whole[:size])
        try:
            most = max(most, len(windows(path=str(tmp_path / "cut.wav"), speed=0)))
        except SensorError:
            assert size < 44
    assert most == 18


def test_missing_or_a_directory(tmp_path):
    with pytest.raises(SensorError, match="No such file"):
        windows(path=str(tmp_path / "none.wav"))
    with pytest.raises(SensorError, match="directory"):
        windows(path=str(tmp_path))


def test_more_axes_than_one_and_unknown_fields(tmp_path):
    path = recording(tmp_path / "s.wav")
    with pytest.raises(ConfigError, match="the domain has 2"):
        open_sensor({"kind": "audio", "path": path}, domain())
    with pytest.raises(ConfigError, match="unknown field"):
        windows(path=path, loop=True)


def test_raw_samples_on_standard_input():
    data = array("h", [1, -1, 2, -2, 3, -3, 4, -32768]).tobytes() + b"\1"
    with standard_input(data):
        got = windows(path="-", channels=2, channel=1)
    assert [(w.samples.tolist(), w.key) for w in got] == [([-1, -2, -3, -32768], "")]


def test_a_pipe_that_falls_silent_begins_anew_with_what_comes_after(tmp_path):
    first = array("h", [1, 2, 3]).tobytes() + b"\7"
    second = array("h", [5, 6, 7, 8]).tobytes()
    assert after_silence(tmp_path / "pipe", "audio", ONE, first, second) == [5, 6, 7, 8]
