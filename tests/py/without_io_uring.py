"""Runs a program under a seccomp filter that refuses io_uring, as container runtimes do.

    without_io_uring.py PROGRAM ARGUMENTS...
"""
import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050000 | 1
ARCHITECTURE_X86_64 = 0xC000003E
IO_URING_CALLS = (425, 426, 427)  # setup, enter, register

program = [(LD_WORD, 0, 0, 4), (JUMP_EQUAL, 1, 0, ARCHITECTURE_X86_64), (RETURN, 0, 0, ALLOW), (LD_WORD, 0, 0, 0)]
for index, call in enumerate(IO_URING_CALLS):
    program.append((JUMP_EQUAL, len(IO_URING_CALLS) - index, 0, call))
program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, EPERM)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


libc = ctypes.CDLL(None, use_errno=True)
filter_ = Filter(len(program), ctypes.addressof(code))
for call in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0)):
    if libc.prctl(*call) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
os.execv(sys.argv[1], sys.argv[1:])
