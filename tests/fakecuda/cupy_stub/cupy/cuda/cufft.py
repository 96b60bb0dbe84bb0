import ctypes

CUFFT_FORWARD, CUFFT_INVERSE = -1, 1


class CuFFTError(RuntimeError):
    pass


class PlanNd:
    def __init__(self, kind):
        from . import lib

        p = ctypes.c_int()
        lib.cufftCreate(ctypes.byref(p))
        self.p, self.kind = p.value, kind

    def fft(self, a, out, direction):
        from . import _cur, lib

        lib.cufftSetStream(self.p, ctypes.c_void_p(_cur[-1]))
        r = getattr(lib, "cufftExec" + self.kind)(
            self.p, ctypes.c_void_p(a.data.ptr), ctypes.c_void_p(out.data.ptr)
        )
        if r:
            raise CuFFTError({4: "CUFFT_INVALID_VALUE", 6: "CUFFT_EXEC_FAILED"}.get(r, r))
