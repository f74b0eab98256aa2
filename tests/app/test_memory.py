"""What a node tells the C library, in a process of its own: the settings are the whole process's."""

import subprocess
import sys

FAULTS = """
import resource
from tdn_interop.app.memory import keep_buffers

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        two = [bytearray(b"x") * (1 << 20) for _ in range(2)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_buffers()
faults()
print(faults())
"""


def test_a_buffer_that_was_freed_is_used_again():
    got = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    assert int(got.stdout) < 1000  # 100 times 2 MiB are 51,200 pages
