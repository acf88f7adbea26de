/* One system call each, for Python and for the other parts: the result, or -errno. */
#define NSJOIN_HOSTED /* of the steps */
#include "shared.h"
#include "syscalls.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* By number, since libc may be older than the kernel, and musl has no wrappers for some; these are the same everywhere. */
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
enum {
    K_AT_STATX_DONT_SYNC = 0x4000, K_PIDFD_THREAD = O_EXCL,
    K_MFD_CLOEXEC = 1,
    K_PIDFD_GET_PID = 0xff05, K_PIDFD_GET_PID_FOR_CHILDREN = 0xff06, /* linux/pidfd.h, Linux 6.11 */
    K_CLONE_NEWTIME = 0x80, /* clone(2) has no bit for it: there it would be a part of the signal */
    K_OPEN_TREE_CLONE = 1, K_MOVE_MOUNT_F_EMPTY_PATH = 4, K_MOVE_MOUNT_T_EMPTY_PATH = 0x40, /* linux/mount.h */
    K_NS_GET_USERNS = 0xb701, /* linux/nsfs.h, which musl has not */
    K_PR_SET_PDEATHSIG = 1, K_PR_SET_DUMPABLE = 4, K_PR_SET_NAME = 15, K_PR_GET_NAME = 16, K_WALL = 0x40000000,
    K_CAP_SYS_PTRACE = 19, K_CAP_SYS_ADMIN = 21, K_SIGSET_SIZE = 8
};

static int result(long value)
{
    return value < 0 ? -errno : (int)value;
}

int nsjoin_setns(int fd, int nstypes)
{
    return result(syscall(SYS_setns, fd, nstypes));
}

int nsjoin_unshare(int nstypes)
{
    return result(syscall(SYS_unshare, nstypes));
}

int nsjoin_pidfd_open(int pid, unsigned int flags)
{
    return result(syscall(SYS_pidfd_open, pid, flags));
}

int nsjoin_pidfd_send_signal(int pidfd, int signal)
{
    return result(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

int nsjoin_pidfd_getfd(int pidfd, int fd)
{
    return result(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
}

int nsjoin_block_signals(uint64_t *before)
{
    static const uint64_t all = ~(uint64_t)0; /* libc's internal signals too, which sigprocmask(3) leaves out */
    return result(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, before, K_SIGSET_SIZE));
}

int nsjoin_restore_signals(const uint64_t *before)
{
    return result(syscall(SYS_rt_sigprocmask, SIG_SETMASK, before, NULL, K_SIGSET_SIZE));
}

int nsjoin_prctl(int option, unsigned long value)
{
    return result(syscall(SYS_prctl, option, value, 0, 0, 0));
}

/* The requests are written as most machines have them; powerpc, mips, sparc and alpha have other bits for direction and
 * size. Those of sockets are plain numbers everywhere. */
static unsigned long native(unsigned long request)
{
    static const unsigned int directions[] = {_IOC_NONE, _IOC_WRITE, _IOC_READ, _IOC_READ | _IOC_WRITE};
    unsigned int type = request >> 8 & 0xff;
    return type == 0x89 ? request : _IOC(directions[request >> 30 & 3], type, request & 0xff, request >> 16 & 0x3fff);
}

int nsjoin_ioctl(int fd, unsigned long request)
{
    return result(syscall(SYS_ioctl, fd, native(request), 0)); /* the PIDFD_GET_* requests want a third argument of 0 */
}

int nsjoin_ioctl_value(int fd, unsigned long request, int value)
{
    return result(syscall(SYS_ioctl, fd, native(request), (long)value));
}

int nsjoin_ioctl_out(int fd, unsigned long request, void *out)
{
    return result(syscall(SYS_ioctl, fd, native(request), out));
}

int nsjoin_openat2(int directory, const char *path, int flags, uint64_t resolve)
{
    const struct { uint64_t flags, mode, resolve; } how = {(uint64_t)(unsigned int)flags, 0, resolve};
    return result(syscall(SYS_openat2, directory, path, &how, sizeof how));
}

int64_t nsjoin_device(int fd)
{
    struct { uint32_t before[34], major, minor; uint64_t behind[14]; } found; /* struct statx, which musl had not always */
    int error = result(syscall(SYS_statx, fd, "", K_AT_EMPTY_PATH | K_AT_STATX_DONT_SYNC, 0, &found));
    return error < 0 ? error : (int64_t)makedev(found.major, found.minor);
}

int nsjoin_memfd_create(const char *name, unsigned int flags)
{
    return result(syscall(SYS_memfd_create, name, flags));
}

/* A file in memory is a file for RLIMIT_FSIZE: beyond it write(2) is EFBIG, and SIGXFSZ, which comes to the thread itself,
 * would end the process or run a handler of the caller's. */
int nsjoin_write(int fd, const char *data, int64_t n, int64_t offset)
{
    static const uint64_t xfsz = (uint64_t)1 << (SIGXFSZ - 1);
    static const struct timespec now;
    uint64_t before, pending;
    int error = result(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &xfsz, &before, K_SIGSET_SIZE));
    if (error < 0)
        return error;
    error = result(syscall(SYS_rt_sigpending, &pending, K_SIGSET_SIZE));
    for (ssize_t written = 0; error == 0 && n > 0; n -= written, data += written, offset += written)
        if ((written = pwrite(fd, data, (size_t)n, offset)) < 0)
            written = error = -errno;
    if (error == -EFBIG && !(pending & xfsz))
        syscall(SYS_rt_sigtimedwait, &xfsz, NULL, &now, K_SIGSET_SIZE); /* also where it is ignored: it has been blocked */
    nsjoin_restore_signals(&before);
    return error;
}

int nsjoin_mount(const char *source, const char *target, const char *fstype, unsigned long flags)
{
    return result(mount(source, target, fstype, flags, NULL));
}

int nsjoin_umount(const char *target, int flags)
{
    return result(umount2(target, flags));
}

int nsjoin_bind(int fd, int on)
{
    int tree = result(syscall(SYS_open_tree, fd, "", K_AT_EMPTY_PATH | K_OPEN_TREE_CLONE | O_CLOEXEC));
    if (tree < 0)
        return tree;
    int error = result(syscall(SYS_move_mount, tree, "", on, "", K_MOVE_MOUNT_F_EMPTY_PATH | K_MOVE_MOUNT_T_EMPTY_PATH));
    close(tree);
    return error;
}

int nsjoin_has(int capability)
{
    struct { uint32_t version; int pid; } head = {K_CAPABILITY_VERSION_3, 0};
    struct { uint32_t effective, permitted, inheritable; } sets[2];
    if (syscall(SYS_capget, &head, sets) != 0)
        return -errno;
    return (int)(sets[capability / 32].effective >> capability % 32 & 1);
}

/* The caller may have closed 0 to 2, where a program's stdio goes: no descriptor of nsjoin may have these numbers. */
static int lifted(int fd)
{
    if (fd < 0 || fd > 2)
        return fd;
    int high = result(fcntl(fd, F_DUPFD_CLOEXEC, 3));
    close(fd);
    return high;
}
