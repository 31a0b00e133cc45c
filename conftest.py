"""For every test: one thread per process, since tests run side by side and their tensors are small."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
