"""One repetition of one case by a Python library: pool.py mp|cf|joblib CASE N. Prints "name value"
lines; seconds is the measured part, after the same warm-up as plua's. SPDX-License-Identifier: MIT"""
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor

WORKERS = 2
MS = 25000  # passes of spin that take about a millisecond
FLOATS = [float(i) for i in range(1, 1001)]
now = time.perf_counter


def cube(x):
    return x ** 3


def spin(passes):
    x = 0.5
    for _ in range(passes):
        x = x * 1.0000001 + 1e-9
    return x


def give(_):
    return list(FLOATS)  # a new one each time: pickle would send a known one as a reference


def size(s):
    return len(s)


def echo(s):
    return s


def floats(n):
    return [float(i) for i in range(1, n + 1)]


def strings(n):
    return [b"%016d" % i * ((1 << 20) // 16) for i in range(1, n + 1)]


def skewed(place):
    data = [10 * MS] * 40
    data.insert({"first": 0, "middle": 20, "last": 40}[place], 400 * MS)
    return data


def greedy(costs):
    free = [0] * WORKERS
    for cost in costs:
        free.sort()
        free[0] += cost
    return max(free)


def say(what, value):
    print("%s %.9f" % (what, value))


def seconds(f, *args):
    start = now()
    f(*args)
    return now() - start


def kilobytes(field):
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1])


class Mp:
    """multiprocessing.Pool; chunks as Pool.map chooses them."""

    def __init__(self, workers=WORKERS):
        self.pool = multiprocessing.Pool(workers)

    def map(self, f, data, chunk=None):
        return self.pool.map(f, data, chunk)

    def async_all(self, f, data):
        futures = [self.pool.apply_async(f, (x,)) for x in data]
        for future in futures:
            future.get()

    def apply(self, f, x):
        return self.pool.apply(f, (x,))

    def imap(self, f, iterator):
        return self.pool.imap(f, iterator, 1000)

    def close(self):
        self.pool.close()
        self.pool.join()


class Cf:
    """ProcessPoolExecutor; chunks as Pool.map would choose them, since its own default is 1."""

    def __init__(self, workers=WORKERS):
        self.pool = ProcessPoolExecutor(workers)

    def map(self, f, data, chunk=None):
        return list(self.pool.map(f, data, chunksize=chunk or max(1, len(data) // (4 * WORKERS))))

    def async_all(self, f, data):
        futures = [self.pool.submit(f, x) for x in data]
        for future in futures:
            future.result()

    def apply(self, f, x):
        return self.pool.submit(f, x).result()

    def imap(self, f, iterator):
        return self.pool.map(f, iterator, chunksize=1000)

    def close(self):
        self.pool.shutdown()


class Joblib:
    """joblib with loky workers, which it keeps; batches as it chooses them."""

    def __init__(self, workers=WORKERS):
        import joblib
        self.lib = joblib
        self.workers = workers

    def map(self, f, data, chunk=None):
        run = self.lib.Parallel(n_jobs=self.workers, batch_size=chunk or "auto", max_nbytes=None)
        return run(self.lib.delayed(f)(x) for x in data)

    def close(self):
        pass


def serial(f, data):
    return [f(x) for x in data]


def cold(Lib, f, data, chunk=None):
    def run():
        pool = Lib()
        pool.map(f, data, chunk)
        pool.close()
    say("seconds", seconds(run))


def warm(Lib, f, data, first=None):
    pool = Lib()
    pool.map(f, data[:2] if first is None else first)
    say("seconds", seconds(pool.map, f, data))
    pool.close()


def beside_serial(Lib, data):
    pool = Lib()
    pool.map(cube, floats(1000))
    half = len(data) // 2
    before = seconds(serial, spin, data[:half])
    say("seconds", seconds(pool.map, spin, data))
    say("serial", before + seconds(serial, spin, data[half:]))
    pool.close()


def skew(Lib, place):
    data = skewed(place)
    beside_serial(Lib, data)
    say("best", greedy(data) / sum(data))


def round_trips(pool, n):
    for x in floats(n):
        pool.apply(cube, x)


def lazily(Lib, n):
    before = kilobytes("VmRSS")
    pool = Lib()

    def run():
        total = 0
        for r in pool.imap(cube, (float(i) for i in range(1, n + 1))):
            total += r
    say("seconds", seconds(run))
    say("growth_mb", (kilobytes("VmHWM") - before) / 1024)
    pool.close()


def again(f, *args):
    f(*args)
    say("seconds", seconds(f, *args))


def all_workers(Lib, n):
    def run():
        pool = Lib(n)
        pool.map(cube, floats(n), 1)
        pool.close()
    say("seconds", seconds(run))


CASES = {
    "oneshot": lambda Lib, n: cold(Lib, cube, floats(n)),
    "warm": lambda Lib, n: warm(Lib, cube, floats(n), floats(n)),
    "chunk1": lambda Lib, n: cold(Lib, cube, floats(n), 1),
    "async": lambda Lib, n: again(Lib().async_all, cube, floats(n)),
    "trip": lambda Lib, n: again(round_trips, Lib(), n),
    "imap": lazily,
    "lists": lambda Lib, n: cold(Lib, give, floats(n)),
    "strings_in": lambda Lib, n: warm(Lib, size, strings(n)),
    "strings_both": lambda Lib, n: warm(Lib, echo, strings(n)),
    "cpu": lambda Lib, n: beside_serial(Lib, [MS] * n),
    "skew_first": lambda Lib, n: skew(Lib, "first"),
    "skew_middle": lambda Lib, n: skew(Lib, "middle"),
    "skew_last": lambda Lib, n: skew(Lib, "last"),
    "thousand": all_workers,
}

if __name__ == "__main__":
    if sys.argv[2] == "start":
        pool = {"mp": Mp, "cf": Cf, "joblib": Joblib}[sys.argv[1]]()
        print(*pool.map(cube, [1, 2, 3, 4, 5, 6]))
        pool.close()
    else:
        CASES[sys.argv[2]]({"mp": Mp, "cf": Cf, "joblib": Joblib}[sys.argv[1]], int(sys.argv[3]))
    sys.stdout.flush()
