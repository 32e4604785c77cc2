"""Wait until a gateway's database holds so many outcomes: wait.py DATABASE COUNT."""

import sqlite3
import sys
import time

while True:
    try:
        db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
        (count,) = db.execute("SELECT count(*) FROM outcomes").fetchone()
        db.close()
        if count >= int(sys.argv[2]):
            break
    except sqlite3.Error:
        pass  # not made yet
    time.sleep(0.5)
