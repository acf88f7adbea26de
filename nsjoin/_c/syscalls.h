/* System calls without libc, for the joiner; on machines without stubs here, the same through libc (NSJOIN_HOSTED). */
#ifndef NSJOIN_SYSCALLS_H
#define NSJOIN_SYSCALLS_H
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef __NR_clone3
#define __NR_clone3 435
#endif
#ifndef __NR_openat2
#define __NR_openat2 437
#endif
#ifndef O_PATH
#define O_PATH 010000000
#endif

/* Constants of the kernel's ABI that need headers which musl and old glibc lack. */
enum {
    K_SIG_BLOCK_SIZE = 8, K_SIG_SETMASK = 2, K_SIGPIPE = 13, K_SIGCHLD = 17, K_SIGXFSZ = 25,
    K_CLONE_VM = 0x100, K_CLONE_VFORK = 0x4000, K_CLONE_PARENT = 0x8000, K_CLONE_PARENT_SETTID = 0x100000,
    K_CLONE_NEWNS = 0x20000, K_MS_REC = 0x4000, K_MS_PRIVATE = 0x40000,
    K_F_SETFD = 2, K_FD_CLOEXEC = 1, K_F_DUPFD_CLOEXEC = 1030, K_AT_FDCWD = -100,
    K_PROT_READ_WRITE = 3, K_MAP_SHARED = 1, K_MAP_PRIVATE_ANONYMOUS = 0x22, K_RLIMIT_NOFILE = 7,
    K_AT_EMPTY_PATH = 0x1000, K_STATX_INO = 0x100, K_JOIN_SESSION_KEYRING = 1,
    K_CAPABILITY_VERSION_3 = 0x20080522, K_PATH_MAX = 4096
};
#define K_CLONE_INTO_CGROUP 0x200000000ULL /* Linux 5.7 */
#define K_RESOLVE_NO_XDEV 1
#define K_RESOLVE_NO_MAGICLINKS 2

struct k_open_how { uint64_t flags, mode, resolve; };
struct k_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
struct k_dirent { uint64_t inode; int64_t offset; uint16_t length; uint8_t type; char name[]; };
struct k_statx { uint32_t before[8]; uint64_t inode; uint64_t behind[27]; };
struct k_cap_header { uint32_t version; int32_t pid; };
struct k_cap_data { uint32_t effective, permitted, inheritable; };

#if defined(NSJOIN_HOSTED)

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SUSPENDED = 0 }; /* of clone: libc would not stand a child that shares its memory */

static long sys(long number, long a, long b, long c, long d, long e)
{
    long result = syscall(number, a, b, c, d, e);
    return result == -1 ? -errno : result;
}

#elif defined(__x86_64__)

static inline long sys(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = 0; /* the sixth argument: the offset of mmap, 0 wherever it is read */
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return number;
}

__asm__(".text\n.globl _start\n_start:\n"
        "xor %ebp, %ebp\n"
        "mov %rsp, %rdi\n"
        "and $-16, %rsp\n"
        "call nsjoin_start\n");

#elif defined(__aarch64__)

static inline long sys(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

__asm__(".text\n.globl _start\n_start:\n"
        "mov x29, #0\n"
        "mov x30, #0\n"
        "mov x0, sp\n"
        "bl nsjoin_start\n");

#else
#error "no system-call stub for this machine: build with -DNSJOIN_HOSTED"
#endif

#ifndef NSJOIN_HOSTED
/* of clone: the child runs in the caller's memory and on its stack; the caller is suspended until it has exec'd or ended */
enum { SUSPENDED = K_CLONE_VM | K_CLONE_VFORK };
#endif

/* Named by the man page, so that the code below reads as one. */
#define SYS5(name, a, b, c, d, e) sys(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define SYS3(name, a, b, c) SYS5(name, a, b, c, 0, 0)
#define SYS1(name, a) SYS5(name, a, 0, 0, 0, 0)

/* On 32-bit machines the plain names are the calls with 16-bit ids. */
#ifdef __NR_setresuid32
#define SET_UIDS(ids) SYS3(setresuid32, ids[0], ids[1], ids[2])
#define SET_GIDS(ids) SYS3(setresgid32, ids[0], ids[1], ids[2])
#define SET_GROUPS(n, groups) SYS3(setgroups32, n, groups, 0)
#else
#define SET_UIDS(ids) SYS3(setresuid, ids[0], ids[1], ids[2])
#define SET_GIDS(ids) SYS3(setresgid, ids[0], ids[1], ids[2])
#define SET_GROUPS(n, groups) SYS3(setgroups, n, groups, 0)
#endif

#define CLONE(flags, tid) SYS5(clone, flags, 0, tid, 0, 0)

/* Shared: of a file; else private and anonymous. NULL if it fails. */
static inline void *map(long size, int shared, long fd)
{
#ifdef NSJOIN_HOSTED
    void *memory = mmap(0, (unsigned long)size, K_PROT_READ_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, (int)fd, 0);
    return memory == MAP_FAILED ? 0 : memory;
#else
    long memory = SYS5(mmap, 0, size, K_PROT_READ_WRITE, shared ? K_MAP_SHARED : K_MAP_PRIVATE_ANONYMOUS, fd);
    return memory < 0 && memory > -4096 ? 0 : (void *)memory;
#endif
}
#endif
