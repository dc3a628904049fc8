import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import types

import keras

from deit_tf import progress


def test_knows_speed_time_left_and_memory(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Progress(epochs=4, steps=10, batch_size=8)
    bar.set_model(types.SimpleNamespace(position=keras.Variable(10)))
    bar.on_epoch_begin(1)
    for _ in range(5):
        now[0] += 2.0
        bar.on_train_batch_end(0, {"loss": 1.0})
    # 5 of 10 steps of the second epoch in 10 s: 20 s an epoch, two and a half are left.
    assert re.fullmatch(r"4 images/s, 0:00:50 left, \d+\.\d GB", bar.summary())
    now[0] += 30.0  # the rest of the epoch, its evaluation included
    bar.done = 10
    bar.on_epoch_end(1, {"loss": 1.0, "val_cls_top1": 0.5})
    bar.model.position.assign(20)
    bar.on_epoch_begin(2)
    now[0] += 2.0
    bar.on_train_batch_end(0)
    assert "0:01:16 left" in bar.summary()  # 1.9 epochs of 40 s


def test_a_terminal_shows_a_bar_and_keeps_a_line_an_epoch(data_dir, tmp_path):
    arguments = [
        *(sys.executable, "-m", "deit_tf.train"),
        "--flagfile=deit_tf/configs/digits_teacher.flags",
        *("--depth=1", "--initial_width=8", "--slope=0", "--group_width=8", "--stem_width=8"),
        *("--nojit", "--warmup_epochs=0", f"--data_dir={data_dir}"),
    ]
    line = r"epoch 1/1: \d+ images/s, 0:00:00 left, \d\.\d GB, loss \d\.\d+, val_cls_top1 0\.\d+"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 160, 0, 0))  # rows, columns
    child = subprocess.Popen(
        [*arguments, "--epochs=1", f"--run_dir={tmp_path / 'terminal'}"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    assert child.wait() == 0
    shown = shown.decode(errors="replace")
    bar = r"\d+%\|.{20}\| epoch 1/1: \d+ images/s, 0:\d\d:\d\d left, \d\.\d GB, loss \d\.\d+"
    assert re.search(bar, shown)
    assert re.search(r"\d+%\|.{20}\| evaluating", shown)
    assert len(re.findall(line, shown)) == 1  # and this one stays


def _read(terminal):
    """What a terminal shows next; nothing when the other side has gone."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
