"""The system call filter of the box, as a classic BPF program (seccomp(2), filter.h).

New processes can't be made, only threads of the one there is: a fork bomb ends at its first fork, whoever the worker
runs as (a limit on processes does not bind root, who so gets no threads either). Calls that only serve to look into
the kernel are refused as well, and those that take memory which no limit counts: memfd_create, System V's segments and
queues, asynchronous reads.
"""

from __future__ import annotations

import platform
import struct
from typing import Final

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000
_EPERM, _ENOSYS = 1, 38

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets into struct seccomp_data; little endian
_CLONE_THREAD: Final = 0x00010000
_X32: Final = 0x40000000

# architecture → (audit number, clone, clone3, refused)
_TABLES: Final[dict[str, tuple[int, int, int, tuple[int, ...]]]] = {
    "x86_64": (
        0xC000003E,
        56,
        435,
        (
            *(57, 58),  # fork, vfork
            *(101, 155, 165, 166, 246, 248, 249, 250, 272, 298, 303, 304, 308, 310, 311, 313, 317, 320, 321, 323),
            *(29, 64, 68, 206, 240, 319, 447),  # shmget, semget, msgget, io_setup, mq_open, memfd_create, memfd_secret
            *(175, 176, 169, 167, 168, 170, 171, 172, 173, 153, 163, 425, 426, 427, 428, 429, 430, 431, 432, 433, 442),
        ),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        435,
        (
            *(117, 41, 40, 39, 104, 217, 218, 219, 97, 241, 264, 265, 268, 270, 271, 273, 277, 280, 282, 294),
            *(194, 190, 186, 0, 180, 279, 447),
            *(105, 106, 142, 224, 225, 161, 162, 58, 89, 425, 426, 427, 428, 429, 430, 431, 432, 433, 442),
        ),
    ),
}


def program(*, threads: bool = True) -> bytes | None:
    """The filter for this machine; None where its architecture is not known here, and the box must not be used.

    Args:
        threads: whether the code may start any. Their number must be limited elsewhere.
    """
    table = _TABLES.get(platform.machine())
    if table is None:
        return None
    architecture, clone, clone3, refused = table
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),  # the other numbering of x86-64
        (_RETURN, 0, 0, _KILL),
        (_EQUAL, 0, 1, clone3),  # its flags are out of sight; libc goes on with clone
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
    ]
    for number in refused:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    code += [
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD if threads else 0),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
