"""without.py WHAT PROGRAM [ARGUMENT…]: runs a program to which the kernel seems to lack something.

WHAT is a list of nf_tables and ip_tables. A filter of system calls answers as a kernel does that was built without them:
there is no netlink for packet filters, and no socket option for tables. Everything else works as ever.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

SOCKET, GETSOCKOPT = {"x86_64": (41, 55), "aarch64": (198, 209)}[platform.machine()]
AF_NETLINK, NETLINK_NETFILTER = 16, 12
GET_INFO = 64

# struct seccomp_data: the number of the call, and the lower half of each of its arguments.
NUMBER = 0
ARGUMENTS = [16 + 8 * number for number in range(6)]
LOAD, EQUAL, ANSWER = 0x20, 0x15, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000


def refuse(call, arguments, number):
    """Instructions that answer an error to a call with these arguments, and go on otherwise."""
    conditions = [(NUMBER, call)] + [(ARGUMENTS[place], value) for place, value in arguments.items()]
    length = 2 * len(conditions) + 1
    out = []
    for place, value in conditions:
        out.append((LOAD, 0, 0, place))
        out.append((EQUAL, 0, length - len(out) - 1, value))
    out.append((ANSWER, 0, 0, ERROR | number))
    return out


program = []
missing = sys.argv[1].split(",")
if "nf_tables" in missing:
    program += refuse(SOCKET, {0: AF_NETLINK, 2: NETLINK_NETFILTER}, errno.EPROTONOSUPPORT)
if "ip_tables" in missing:
    for level in 0, 41:
        program += refuse(GETSOCKOPT, {1: level, 2: GET_INFO}, errno.ENOPROTOOPT)
program.append((ANSWER, 0, 0, ALLOW))


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
filters = Program(len(program), instructions)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(filters), 0, 0):
    sys.exit(f"without.py: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[2], sys.argv[2:])
