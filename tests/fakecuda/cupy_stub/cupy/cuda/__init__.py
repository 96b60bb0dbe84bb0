import contextlib
import ctypes

lib = ctypes.CDLL(None)
_cur = [0]


class Stream:
    def __init__(self, ptr):
        self.ptr = ptr

    @classmethod
    def from_external(cls, s):
        return cls(s.__cuda_stream__()[1])

    def __enter__(self):
        _cur.append(self.ptr)

    def __exit__(self, *a):
        _cur.pop()


class UnownedMemory:
    def __init__(self, ptr, size, owner, device):
        self.ptr = ptr


class MemoryPointer:
    def __init__(self, mem, off):
        self.ptr = mem.ptr + off


class PythonFunctionAllocator:
    def __init__(self, m, f):
        self.m, self.f = m, f

    def malloc(self, size):
        return self.m(size, 0)


@contextlib.contextmanager
def using_allocator(a):
    yield


from . import cufft as cufft  # noqa: E402 - which needs the names above
