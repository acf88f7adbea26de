/* The shim: what Python calls. Each function is one system call, or a few that must not be interrupted by Python. */
#ifndef _GNU_SOURCE /* cffi's own source is compiled with it as well, from the command line */
#define _GNU_SOURCE
#endif
#include "shared.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
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
#include "joiner_image.h" /* the joiner as bytes: static const unsigned char joiner_image[] */

/* What is told through control: by the child of the process in the middle, and of it. */
enum { NSJOIN_BORN = 'b', NSJOIN_REAPED = 'r' };

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
    K_AT_EMPTY_PATH = 0x1000, K_AT_STATX_DONT_SYNC = 0x4000, K_PIDFD_THREAD = O_EXCL,
    K_MFD_CLOEXEC = 1,
    K_PIDFD_GET_USER = 0xff09, K_PIDFD_GET_PID = 0xff05, K_PIDFD_GET_PID_FOR_CHILDREN = 0xff06, /* linux/pidfd.h, Linux 6.11 */
    K_CLONE_NEWTIME = 0x80, /* clone(2) has no bit for it: there it would be a part of the signal */
    K_OPEN_TREE_CLONE = 1, K_MOVE_MOUNT_F_EMPTY_PATH = 4, K_MOVE_MOUNT_T_EMPTY_PATH = 0x40, /* linux/mount.h */
    K_NS_GET_USERNS = 0xb701, /* linux/nsfs.h, which musl has not */
    K_PR_SET_PDEATHSIG = 1, K_PR_SET_DUMPABLE = 4, K_PR_SET_NAME = 15, K_PR_GET_NAME = 16, K_WALL = 0x40000000,
    K_CAP_SYS_PTRACE = 19, K_CAP_SYS_ADMIN = 21, K_CAPABILITY_VERSION_3 = 0x20080522, K_SIGSET_SIZE = 8, K_RLIMIT_NOFILE = 7
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

/* Where the caller has closed 0 to 2, nothing of ours may lie there: a program's stdio goes there. */
static int lifted(int fd)
{
    if (fd < 0 || fd > 2)
        return fd;
    int high = result(fcntl(fd, F_DUPFD_CLOEXEC, 3));
    close(fd);
    return high;
}

/* This thread's own pidfd, kept for as long as the thread lives: with it, saving a namespace for the way back is one
 * ioctl instead of a walk through /proc, which may not even be ours. The descriptor may have been closed, and its number
 * given to something else, by a program that closes all it does not know: so its inode, unique in pidfs, is compared. */
static _Thread_local struct { int fd; int generation; dev_t device; ino_t inode; } own = {.fd = -1};
static int generation; /* of processes: the child of a fork has its parent's descriptor, which names the parent */
static pthread_key_t at_thread_exit;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int own_is_open(void)
{
    struct stat now;
    return own.fd >= 0 && fstat(own.fd, &now) == 0 && now.st_ino == own.inode && now.st_dev == own.device;
}

static void close_own(void *unused)
{
    (void)unused;
    if (own_is_open())
        close(own.fd);
    own.fd = -1;
}

/* What has to stay in this process alone: the child of a fork elsewhere in it would hold a launch up by its copy of a
 * barrier, or keep a holder alive by that of a tie. So the child closes its copies, in a handler of fork(3), where only
 * system calls are allowed: the list lies in the structs that hold the descriptors, and fork(3) is made with the lock held,
 * so the list and the numbers are whole in the child. Every fork(3) is reached that way, Python's, subprocess's and that
 * of any C library; posix_spawn(3) and vfork(2) run no handlers, but execve comes soon, and all this is close-on-exec. Who
 * calls _Fork(3) or clone(2) and does not execute anything keeps copies: there is no way to be told. */
static struct nsjoin_link *closed_in_children;
static pthread_mutex_t coming_and_going = PTHREAD_MUTEX_INITIALIZER;

static void add_link(struct nsjoin_link *link, int32_t *fds, int n)
{
    *link = (struct nsjoin_link){closed_in_children, NULL, fds, n};
    if (link->next)
        link->next->previous = link;
    closed_in_children = link;
}

static void drop_link(struct nsjoin_link *link)
{
    if (!link->fds)
        return;
    if (link->next)
        link->next->previous = link->previous;
    *(link->previous ? &link->previous->next : &closed_in_children) = link->next;
    *link = (struct nsjoin_link){NULL, NULL, NULL, 0};
}

static void close_one(int32_t *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_all(struct nsjoin_link *link)
{
    for (int i = 0; i < link->n; i++)
        close_one(&link->fds[i]);
    drop_link(link);
}

static void cover_names(struct nsjoin_call *call);
static void uncover_names(const struct nsjoin_call *call);
static void go_where_the_child_is_born(struct nsjoin_call *call);
static void come_back(struct nsjoin_call *call);
static void tell(const struct nsjoin_call *call, char what);

static _Thread_local struct nsjoin_call *forking; /* the call that this thread forks for */
static struct nsjoin_call *bearing;               /* in the process in the middle: the call whose child it forks */

static void before_fork(void)
{
    pthread_mutex_lock(&coming_and_going);
    if (forking) {
        cover_names(forking);
        go_where_the_child_is_born(forking);
    }
}

static void after_fork(void)
{
    if (forking) {
        come_back(forking);
        uncover_names(forking);
    }
    pthread_mutex_unlock(&coming_and_going);
}

static void after_fork_in_child(void)
{
    generation++;
    if (forking) {
        nsjoin_prctl(K_PR_SET_DUMPABLE, 0);
        drop_link(&forking->link);
    }
    if (bearing)
        tell(bearing, NSJOIN_BORN);
    forking = bearing = NULL;
    while (closed_in_children)
        close_all(closed_in_children);
    pthread_mutex_unlock(&coming_and_going);
}

static void set_up(void)
{
    if (pthread_key_create(&at_thread_exit, close_own) != 0 || pthread_atfork(before_fork, after_fork, after_fork_in_child) != 0)
        generation = -1;
}

static int own_pidfd(void)
{
    struct stat now;
    int fd;
    if (own.generation == generation && own_is_open())
        return own.fd;
    pthread_once(&once, set_up);
    if (generation < 0)
        return -ENOMEM;
    close_own(NULL);
    fd = lifted(nsjoin_pidfd_open((int)syscall(SYS_gettid), K_PIDFD_THREAD));
    if (fd < 0)
        return fd;
    if (fstat(fd, &now) != 0 || pthread_setspecific(at_thread_exit, &own) != 0) {
        close(fd);
        return -ENOMEM;
    }
    own.fd = fd;
    own.generation = generation;
    own.device = now.st_dev;
    own.inode = now.st_ino;
    return fd;
}

uint64_t nsjoin_thread(void)
{
    static _Thread_local uint64_t thread;
    static uint32_t count;
    if (thread == 0)
        thread = (uint64_t)__atomic_add_fetch(&count, 1, __ATOMIC_RELAXED) << 32 | (uint32_t)syscall(SYS_gettid);
    return thread;
}

int nsjoin_own(unsigned long request)
{
    int fd = own_pidfd();
    return fd < 0 ? fd : lifted(nsjoin_ioctl(fd, request));
}

static int open_place(const char *path)
{
    return lifted(result(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC)));
}

/* setns(2) to a namespace wants CAP_SYS_ADMIN over its owner. Over a user namespace that is neither ours nor a descendant
 * of ours nobody has it, and NS_GET_USERNS (Linux 4.9) says EPERM for exactly those. */
static int check_way_back(int fd)
{
    int owner = nsjoin_ioctl(fd, K_NS_GET_USERNS);
    if (owner >= 0)
        close(owner);
    return owner == -EPERM ? owner : 0;
}

/* Opens all that the way back needs: after the moves neither /proc nor a path can be relied on. */
static int save(struct nsjoin_stay *stay, const struct nsjoin_trip *trip)
{
    for (int i = 0; i < trip->n; i++) {
        stay->failed = i;
        stay->nstypes[i] = trip->nstypes[i];
        stay->call = "save";
        if (!stay->is_given) {
            stay->saved[i] = nsjoin_own(trip->requests[i]);
            if (stay->saved[i] < 0)
                return stay->saved[i];
            stay->n = i + 1;
        }
        if (trip->check_way_back && check_way_back(stay->saved[i]) < 0) {
            stay->stage = NSJOIN_NO_WAY_BACK;
            return -EPERM;
        }
        if (trip->nstypes[i] != CLONE_NEWNS)
            continue;
        stay->call = "open";
        stay->root = open_place("/");
        stay->cwd = open_place(".");
        if (stay->root < 0 || stay->cwd < 0)
            return stay->root < 0 ? stay->root : stay->cwd;
        /* Threads share root and working directory, and setns moves those of all of them: with a pidfd it does so, with
         * a namespace's descriptor it says EINVAL. */
        stay->call = "unshare";
        int error = nsjoin_unshare(CLONE_FS);
        if (error < 0)
            return error;
    }
    return 0;
}

static int move(struct nsjoin_stay *stay, const struct nsjoin_trip *trip)
{
    for (int i = 0; i < trip->n_moves; i++) {
        int error = nsjoin_setns(trip->moves[i].fd, (int)trip->moves[i].nstypes);
        stay->failed = i;
        if (error < 0)
            return error;
        stay->joined |= trip->moves[i].nstypes;
    }
    return 0;
}

static int change_root(int root, const char **call)
{
    int error = result(fchdir(root));
    *call = error < 0 ? "fchdir" : "chroot";
    return error < 0 ? error : result(chroot("."));
}

int nsjoin_enter(struct nsjoin_stay *stay, const struct nsjoin_trip *trip)
{
    stay->root = stay->cwd = -1;
    stay->stage = NSJOIN_SAVE;
    int error = save(stay, trip);
    if (error == 0) {
        stay->stage = NSJOIN_MOVE;
        error = move(stay, trip);
    }
    /* setns has moved to the root of the mount namespace; the target may be chrooted in it */
    if (error == 0 && trip->root >= 0) {
        stay->stage = NSJOIN_ROOT;
        error = change_root(trip->root, &stay->call);
    }
    if (error < 0) {
        int failed = stay->failed;
        int way_back = nsjoin_leave(stay);
        if (way_back < 0) {
            stay->stage = NSJOIN_BACK;
            return way_back;
        }
        stay->failed = failed;
    }
    return error;
}

static int back_to_mount(struct nsjoin_stay *stay, int fd)
{
    int error = nsjoin_setns(fd, CLONE_NEWNS);
    stay->call = "setns";
    if (error == -EINVAL && nsjoin_unshare(CLONE_FS) == 0) /* a thread that was born inside shares its root with us */
        error = nsjoin_setns(fd, CLONE_NEWNS);
    if (error == 0) /* that was to the root of the mount namespace, we may come from a chroot in it */
        error = change_root(stay->root, &stay->call);
    if (error < 0)
        return error;
    stay->call = "fchdir";
    return result(fchdir(stay->cwd));
}

int nsjoin_leave(struct nsjoin_stay *stay)
{
    const char *call = stay->call;
    int first = 0;
    if (stay->stage == 0) /* not begun: all zero, and 0 is somebody's stdin */
        return 0;
    for (int i = stay->n - 1; i >= 0; i--) {
        int error = 0;
        if (stay->joined & stay->nstypes[i])
            error = stay->nstypes[i] == CLONE_NEWNS ? back_to_mount(stay, stay->saved[i])
                                                    : nsjoin_setns(stay->saved[i], (int)stay->nstypes[i]);
        if (error < 0 && first == 0) {
            first = error;
            stay->failed = i;
            call = stay->nstypes[i] == CLONE_NEWNS ? stay->call : "setns";
        }
        close_one(&stay->saved[i]);
    }
    if (stay->root >= 0 || stay->cwd >= 0) {
        close_one(&stay->root);
        close_one(&stay->cwd);
    }
    stay->n = stay->is_given = 0; /* what was given is closed now: who enters with this stay again saves anew */
    stay->joined = 0;
    stay->call = call;
    return first;
}

int nsjoin_inodes(int pidfd, int n, const uint32_t *requests, uint64_t *inodes)
{
    struct stat found;
    if (pidfd < 0)
        pidfd = own_pidfd();
    if (pidfd < 0)
        return pidfd;
    for (int i = 0; i < n; i++) {
        int fd = nsjoin_ioctl(pidfd, requests[i]);
        if (fd == -EOPNOTSUPP) { /* a type that this kernel was built without */
            inodes[i] = 0;
            continue;
        }
        if (fd < 0)
            return fd;
        int error = fstat(fd, &found) == 0 ? 0 : -errno;
        close(fd);
        if (error < 0)
            return error;
        inodes[i] = found.st_ino;
    }
    return 0;
}

int nsjoin_look(int pidfd, int n, const uint32_t *requests, uint64_t *inodes)
{
    int error = nsjoin_inodes(-1, n, requests, inodes);
    if (error == 0)
        error = nsjoin_inodes(pidfd, n, requests, inodes + n);
    return error < 0 ? error : nsjoin_has(K_CAP_SYS_ADMIN);
}

int nsjoin_is_shared(int pidfd, unsigned long request)
{
    const uint32_t requests[] = {(uint32_t)request};
    uint64_t theirs, ours;
    int error = nsjoin_inodes(pidfd, 1, requests, &theirs);
    if (error == 0)
        error = nsjoin_inodes(-1, 1, requests, &ours);
    return error < 0 ? error : theirs == ours;
}

int nsjoin_image_size(void)
{
    return (int)sizeof joiner_image;
}

const unsigned char *nsjoin_image(void)
{
    return joiner_image;
}

struct launch {
    struct nsjoin_work *work;
    int image;
    const char *image_path; /* the same through /proc */
    char *const *argv;
    const int32_t *lent;
    int n_lent;
    int at_home;
};

/* Runs in the caller's memory, on a stack of its own (CLONE_VM | CLONE_VFORK): system calls only, and nothing of the
 * caller may be changed. The descriptor table is this process's own. All signals are blocked; the caller's handlers end
 * with execveat. ASan would mark this frame in memory that is the caller's too, and there is no return to clear the marks. */
__attribute__((no_sanitize_address)) static int become_joiner(void *argument)
{
    static char *const no_environment[] = {NULL};
    const struct launch *launch = argument;
    int32_t report[3] = {NSJOIN_STEP_LAUNCH, 0, 0}; /* step; index: 1 for fcntl, 0 for execveat; error */
    int n = 0;
    /* Once more, for kernels that do not tell beforehand: the kernel has written how the caller sees us. If that is not how
     * we do, setns(CLONE_NEWPID) came before: we could join only descendants of that namespace, and the pid of our child
     * would be written as seen from it. */
    if (launch->at_home && syscall(SYS_getpid) != launch->work->joiner) {
        report[2] = EXDEV;
    } else {
        while (n < launch->n_lent && fcntl(launch->lent[n], F_SETFD, 0) == 0)
            n++;
        report[1] = n < launch->n_lent;
        if (n == launch->n_lent)
            syscall(SYS_execveat, launch->image, "", launch->argv, no_environment, K_AT_EMPTY_PATH);
        if (n == launch->n_lent && (errno == ENOSYS || errno == EPERM) && !launch->work->no_paths) /* a seccomp filter */
            syscall(SYS_execve, launch->image_path, launch->argv, no_environment);
        report[2] = errno;
    }
    if (pwrite(launch->work->plan, report, sizeof report, offsetof(struct nsjoin_plan, step)) < 0)
        _exit(126);
    _exit(127);
}

/* A seccomp filter may forbid memfds. The file has no name, so nobody else can open it. */
static int open_plan(int no_paths)
{
    int fd = nsjoin_memfd_create("nsjoin-plan", K_MFD_CLOEXEC);
    if ((fd == -ENOSYS || fd == -EPERM) && !no_paths)
        fd = result(open("/tmp", O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600)); /* Linux 3.11 */
    return lifted(fd);
}

static int open_pipe(int32_t *reader, int32_t *writer)
{
    int32_t ends[2];
    int error = result(pipe2(ends, O_CLOEXEC));
    if (error < 0)
        return error;
    *reader = lifted(ends[0]);
    *writer = lifted(ends[1]);
    return *reader < 0 ? *reader : *writer < 0 ? *writer : 0;
}

static int open_work(struct nsjoin_work *work)
{
    int error = open_pipe(&work->barrier[0], &work->barrier[1]);
    if (error == 0 && (work->plan = open_plan(work->no_paths)) < 0)
        error = work->plan;
    return error;
}

/* The handlers of fork(3) are there, or -ENOMEM. */
static int stand_by(void)
{
    pthread_once(&once, set_up);
    return generation < 0 ? -ENOMEM : 0;
}

int nsjoin_prepare(struct nsjoin_work *work)
{
    int error = stand_by();
    if (error < 0)
        return error;
    pthread_mutex_lock(&coming_and_going);
    add_link(&work->link, &work->plan, 3);
    error = open_work(work);
    pthread_mutex_unlock(&coming_and_going);
    return error;
}

static int start(struct launch *launch)
{
    _Alignas(64) char stack[16384]; /* ours is suspended until the child has exec'd, so it may use a part of it */
    const int flags = CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID | SIGCHLD;
    int pid = clone(become_joiner, stack + sizeof stack, flags, launch, &launch->work->joiner);
    if (pid < 0 && errno == EINVAL) {
        /* Before Linux 6.2, where time_for_children differs, memory cannot be shared; nor is our pid in the copy. */
        launch->at_home = 0;
        pid = clone(become_joiner, stack + sizeof stack, flags & ~CLONE_VM, launch, &launch->work->joiner);
    }
    return result(pid);
}

/* Inside enter(pid, "pid") a child would be born in the target, with the caller's memory as its own until it execs. */
static int check_is_at_home(void)
{
    const uint32_t requests[] = {K_PIDFD_GET_PID, K_PIDFD_GET_PID_FOR_CHILDREN};
    uint64_t inodes[2];
    if (nsjoin_inodes(-1, 2, requests, inodes) < 0)
        return -ENOTTY;
    return inodes[0] == inodes[1] ? 0 : -EXDEV;
}

static void write_path(char *path, int fd)
{
    static const char folder[] = "/proc/self/fd/";
    char digits[12];
    int n = 0;
    memcpy(path, folder, sizeof folder - 1);
    path += sizeof folder - 1;
    do
        digits[n++] = (char)('0' + fd % 10);
    while ((fd /= 10) > 0);
    while (n > 0)
        *path++ = digits[--n];
    *path = 0;
}

int nsjoin_launch(struct nsjoin_work *work, int image, const char *plan_number, const int32_t *lent, int n_lent, int at_home)
{
    char *const argv[] = {(char[]){"nsjoin"}, (char *)(uintptr_t)plan_number, NULL};
    char path[32];
    struct launch launch = {work, image, path, argv, lent, n_lent, at_home};
    uint64_t mask;
    int error = at_home == NSJOIN_CHECK_HOME ? check_is_at_home() : 0;
    if (error < 0)
        return error;
    write_path(path, image);
    error = nsjoin_block_signals(&mask);
    if (error < 0)
        return error;
    error = nsjoin_write(work->plan, (const char *)&mask, sizeof mask, offsetof(struct nsjoin_plan, sigmask));
    if (error == 0)
        error = start(&launch);
    nsjoin_restore_signals(&mask);
    return error;
}

void nsjoin_close_barrier(struct nsjoin_work *work)
{
    pthread_mutex_lock(&coming_and_going);
    close_one(&work->barrier[1]);
    pthread_mutex_unlock(&coming_and_going);
}

void nsjoin_finish(struct nsjoin_work *work)
{
    pthread_mutex_lock(&coming_and_going);
    close_all(&work->link);
    pthread_mutex_unlock(&coming_and_going);
}

/* --- calls: _call.py ----------------------------------------------------------------------------------------------------
 *
 * In C, since what Python writes to while both processes live, and be it a reference count, costs a page fault and a copy. */

static int open_pair(int32_t *pair)
{
    int error = result(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
    for (int i = 0; error == 0 && i < 2; i++)
        if ((pair[i] = lifted(pair[i])) < 0)
            error = pair[i];
    return error;
}

static int open_call(struct nsjoin_call *call)
{
    call->channel[0] = call->channel[1] = call->control[0] = call->control[1] = -1;
    call->home = call->children = call->self = call->child = -1;
    call->caller = (int32_t)syscall(SYS_getpid);
    call->is_open = 1;
    const int on = 1;
    add_link(&call->link, call->channel, 8);
    int error = open_pair(call->channel);
    if (error == 0 && call->flags & NSJOIN_FORK)
        error = open_pair(call->control);
    if (error == 0 && call->flags & NSJOIN_FORK)
        error = result(setsockopt(call->control[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    if (error == 0)
        call->self = lifted(nsjoin_pidfd_open(call->caller, 0)); /* Linux 5.3 */
    if (error == 0 && call->flags & NSJOIN_FORK) {
        call->home = nsjoin_own(K_PIDFD_GET_PID); /* Linux 6.11 */
        call->children = nsjoin_own(K_PIDFD_GET_PID_FOR_CHILDREN);
    }
    return error;
}

int nsjoin_open_call(struct nsjoin_call *call)
{
    int error = stand_by();
    if (error < 0)
        return error;
    pthread_mutex_lock(&coming_and_going);
    error = open_call(call);
    pthread_mutex_unlock(&coming_and_going);
    return error;
}

int nsjoin_watch(struct nsjoin_call *call, int pid)
{
    pthread_mutex_lock(&coming_and_going);
    call->child = lifted(nsjoin_pidfd_open(pid, 0));
    pthread_mutex_unlock(&coming_and_going);
    return call->child;
}

static void close_ends(struct nsjoin_call *call, int end)
{
    close_one(&call->channel[end]);
    close_one(&call->control[end]);
}

void nsjoin_close_call(struct nsjoin_call *call)
{
    if (!call->is_open)
        return;
    call->is_open = 0;
    pthread_mutex_lock(&coming_and_going);
    close_all(&call->link);
    pthread_mutex_unlock(&coming_and_going);
    for (int i = 0; i < call->n_fds; i++)
        close_one(&call->fds[i]);
}

static int is_same(int one, int other)
{
    struct stat a, b;
    return fstat(one, &a) == 0 && fstat(other, &b) == 0 && a.st_ino == b.st_ino;
}

/* Of a PID namespace, setns(2) changes only what the thread's children are born into. So the caller's thread can go there
 * for the time of the fork, which saves a process in the middle; libc calls this right before the system call, and
 * come_back right after it: no other code of this process runs meanwhile.
 *
 * For a moment the child is there without being undumpable. Who could use that must hold all its capabilities or
 * CAP_SYS_PTRACE (ptrace(2), PTRACE_MODE_READ); if CAP_SYS_PTRACE is one of them, he may look into it anyway. */
static void go_where_the_child_is_born(struct nsjoin_call *call)
{
    if (!(call->flags & NSJOIN_FORK))
        return;
    if (call->self >= 0 && nsjoin_has(K_CAP_SYS_PTRACE) == 1 && check_way_back(call->children) == 0)
        for (int i = 0; i < call->n_joins && !call->is_born_inside; i++)
            if (call->joins[i].nstypes & CLONE_NEWPID)
                call->is_born_inside = nsjoin_setns(call->joins[i].fd, CLONE_NEWPID) == 0;
    call->is_away = call->is_born_inside;
    if (!call->is_away && !is_same(call->home, call->children)) /* inside enter(pid, "pid"): the middle belongs home */
        call->is_away = nsjoin_setns(call->home, CLONE_NEWPID) == 0;
}

static void come_back(struct nsjoin_call *call)
{
    if (call->is_away)
        call->error = nsjoin_setns(call->children, CLONE_NEWPID);
    call->is_away = 0;
}

int nsjoin_begin_fork(struct nsjoin_call *call)
{
    int error = nsjoin_block_signals(&call->sigmask);
    if (error == 0) {
        call->is_blocked = 1;
        forking = call;
    }
    return error;
}

int nsjoin_end_fork(struct nsjoin_call *call)
{
    forking = NULL;
    if (call->is_blocked)
        nsjoin_restore_signals(&call->sigmask);
    call->is_blocked = 0;
    pthread_mutex_lock(&coming_and_going);
    close_ends(call, 1);
    pthread_mutex_unlock(&coming_and_going);
    return call->error;
}

/* /proc/PID/cmdline and comm are open to everyone who sees the process, dumpable or not, and whoever is inside can stop a
 * process with SIGSTOP before its first instruction. So what is to be read there is gone before the child is born, and is
 * back in the caller right after that. (From outside, ps shows the caller without its arguments for that moment.) A last
 * byte of NUL also ends what setproctitle(3) has written beyond the area. */
static void cover_names(struct nsjoin_call *call)
{
    nsjoin_prctl(K_PR_GET_NAME, (unsigned long)call->comm);
    nsjoin_prctl(K_PR_SET_NAME, (unsigned long)"nsjoin-call");
    if (call->n_argv == 0)
        return;
    memcpy(call->argv_kept, (const void *)(uintptr_t)call->argv, call->n_argv);
    memset((void *)(uintptr_t)call->argv, 0, call->n_argv);
}

static void uncover_names(const struct nsjoin_call *call)
{
    if (call->n_argv)
        memcpy((void *)(uintptr_t)call->argv, call->argv_kept, call->n_argv);
    nsjoin_prctl(K_PR_SET_NAME, (unsigned long)call->comm);
}

/* What a fault of the process's own raises: runtimes and faulthandler live by these, and end the process by them. */
static int is_of_a_fault(int signal)
{
    static const int faults[] = {SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        if (faults[i] == signal)
            return 1;
    return 0;
}

/* Python's handler writes to the wakeup descriptor, libuv's and libev's to pipes of their loops, and the child has copies of
 * them: whoever signals the child would run the caller's handlers in the caller. sigaction(2) of libc says EINVAL for libc's
 * own signals, which stay as they are. */
uint64_t nsjoin_drop_handlers(void)
{
    const struct sigaction by_default = {.sa_handler = SIG_DFL};
    uint64_t handled = 0;
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) != 0 || action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)
            continue;
        if (number <= 64)
            handled |= (uint64_t)1 << (number - 1);
        if (!is_of_a_fault(number))
            sigaction(number, &by_default, NULL);
    }
    return handled;
}

static void tell(const struct nsjoin_call *call, char what)
{
    syscall(SYS_write, call->control[1], &what, 1); /* of this kind of socket, no SIGPIPE; EPIPE: nobody wants to know */
}

void nsjoin_tell_of_birth(struct nsjoin_call *call)
{
    bearing = call;
}

void nsjoin_tell_of_end(const struct nsjoin_call *call)
{
    tell(call, NSJOIN_REAPED);
}

/* SO_PASSCRED (unix(7)): the kernel says which process has sent a record, by its pid as we see it. */
int nsjoin_left_behind(const struct nsjoin_call *call)
{
    int pid = -EAGAIN;
    for (;;) {
        _Alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof(struct ucred))];
        char what;
        struct iovec part = {&what, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        ssize_t n = recvmsg(call->control[0], &message, MSG_DONTWAIT);
        if (n < 0 && errno == ECONNRESET) /* said once, before the records: the middle has not read what we wrote */
            continue;
        if (n <= 0)
            return pid;
        const struct cmsghdr *sender = CMSG_FIRSTHDR(&message);
        pid = what == NSJOIN_BORN && sender ? ((const struct ucred *)(const void *)CMSG_DATA(sender))->pid : 0;
    }
}

static int send_head(const struct nsjoin_call *call)
{
    return result(syscall(SYS_write, call->channel[1], &call->head, sizeof call->head));
}

void nsjoin_give_up(struct nsjoin_call *call, int step, int index, int error)
{
    call->head = (struct nsjoin_head){0, step, index, error, 0};
    _exit(send_head(call) < 0 ? 254 : 255);
}

/* error is 0 or negative; -allowed is no failure. */
static int must(struct nsjoin_call *call, int step, int index, int error, int allowed)
{
    if (error < 0 && error != -allowed)
        nsjoin_give_up(call, step, index, -error);
    return error == 0;
}

static void drop_groups(struct nsjoin_call *call)
{
    if (call->flags & NSJOIN_DROP_GROUPS)
        must(call, NSJOIN_STEP_GROUPS, 0, result(setgroups(0, NULL)), EPERM);
}

/* Joining a user namespace and changing ids set this to fs.suid_dumpable, which may be 1. */
static void hide(struct nsjoin_call *call)
{
    must(call, NSJOIN_STEP_HIDE, 0, nsjoin_prctl(K_PR_SET_DUMPABLE, 0), 0);
}

/* Whoever leaves a user namespace never comes back: if the target is still in this one, all that was joined belongs to it. */
static void check_user(struct nsjoin_call *call)
{
    static const uint32_t requests[] = {K_PIDFD_GET_USER};
    uint64_t user;
    if (call->witness < 0)
        return;
    must(call, NSJOIN_STEP_WITNESS, 0, nsjoin_inodes(call->witness, 1, requests, &user), 0);
    must(call, NSJOIN_STEP_WITNESS, 0, user == call->user ? 0 : -EAGAIN, 0);
}

static void join(struct nsjoin_call *call)
{
    uint32_t joined = 0;
    for (int i = 0; i < call->n_joins; i++) {
        const struct nsjoin_join *step = &call->joins[i];
        uint32_t nstypes = call->is_born_inside ? step->nstypes & ~(uint32_t)CLONE_NEWPID : step->nstypes;
        if (nstypes == 0 || (step->how & NSJOIN_AGAIN && joined & nstypes))
            continue;
        if (must(call, NSJOIN_STEP_JOIN, i, nsjoin_setns(step->fd, (int)nstypes), step->how & NSJOIN_TRY ? EPERM : 0)) {
            joined |= nstypes;
            hide(call);
        }
    }
    check_user(call);
}

static void take_ids(struct nsjoin_call *call)
{
    const int no_gid = call->flags & NSJOIN_TRY_GID ? EINVAL : 0, no_uid = call->flags & NSJOIN_TRY_UID ? EINVAL : 0;
    if (call->flags & NSJOIN_SETGID)
        must(call, NSJOIN_STEP_IDS, 1, result(setresgid(call->gid, call->gid, call->gid)), no_gid);
    if (call->flags & NSJOIN_SETUID)
        must(call, NSJOIN_STEP_IDS, 2, result(setresuid(call->uid, call->uid, call->uid)), no_uid);
}

/* It may have ended before PR_SET_PDEATHSIG. getppid(2) says 0 where the caller is in another PID namespace. */
static int caller_is_there(const struct nsjoin_call *call)
{
    struct pollfd self = {call->self, POLLIN, 0};
    long parent = syscall(SYS_getppid);
    return self.fd >= 0 ? poll(&self, 1, 0) != 1 : parent == call->caller || parent == 0;
}

void nsjoin_go_inside(struct nsjoin_call *call)
{
    nsjoin_restore_signals(&call->sigmask);
    close_ends(call, 0);
    hide(call);
    drop_groups(call);
    join(call);
    if (call->root >= 0) {
        must(call, NSJOIN_STEP_ROOT, 0, result(fchdir(call->root)), 0);
        must(call, NSJOIN_STEP_ROOT, 1, result(chroot(".")), 0);
    }
    drop_groups(call);
    take_ids(call);
    hide(call);
    must(call, NSJOIN_STEP_SESSION, 0, nsjoin_prctl(K_PR_SET_PDEATHSIG, SIGKILL), 0);
    if (!caller_is_there(call))
        _exit(255);
    close_one(&call->self);
}

int64_t nsjoin_next_length(struct nsjoin_call *call)
{
    ssize_t n = recv(call->channel[0], &call->head, sizeof call->head, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != ECONNRESET)
        return -errno;
    if (n < (ssize_t)sizeof call->head)
        return -ENODATA;
    return n - (ssize_t)sizeof call->head == call->head.length ? call->head.length : -EBADMSG;
}

static void take_descriptors(struct nsjoin_call *call, struct msghdr *message)
{
    const struct cmsghdr *part = CMSG_FIRSTHDR(message); /* there is no other kind, as nobody has asked for it */
    if (!part)
        return;
    call->n_fds = (int32_t)((part->cmsg_len - CMSG_LEN(0)) / sizeof *call->fds);
    memcpy(call->fds, CMSG_DATA(part), (size_t)call->n_fds * sizeof *call->fds);
}

int nsjoin_receive(struct nsjoin_call *call, char *text)
{
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof call->fds)];
    struct iovec parts[] = {{&call->head, sizeof call->head}, {text, (size_t)call->head.length}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = room, .msg_controllen = sizeof room};
    if (recvmsg(call->channel[0], &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) < 0)
        return -errno;
    take_descriptors(call, &message);
    return message.msg_flags & MSG_CTRUNC ? -EMFILE : 0; /* RLIMIT_NOFILE: not all could be taken */
}

struct holding {
    struct nsjoin_hold *hold;    /* with the write ends of two pipes */
    int32_t tie, barrier;        /* and their read ends */
    struct nsjoin_link link;
    struct { int32_t step, error, pid; } *report; /* shared also where the memory is not */
    int image;
    const char *offsets;
    int n_offsets;
};

/* Its own stdio and no other descriptor, no terminal: it may live long. */
static int leave_everything(const struct holding *holding)
{
    static const unsigned long ignore[5] = {1}; /* SIG_IGN; no flags, no restorer, empty mask */
    const struct nsjoin_hold *hold = holding->hold;
    if (syscall(SYS_dup3, holding->tie, 0, 0) < 0 || syscall(SYS_dup3, holding->image, 2, O_CLOEXEC) < 0)
        return -errno;
    if (!hold->stays)
        syscall(SYS_close, 1);
    else if (syscall(SYS_dup3, hold->tie, 1, 0) < 0)
        return -errno;
    if (hold->barrier != 3 && syscall(SYS_dup3, hold->barrier, 3, O_CLOEXEC) < 0)
        return -errno;
    if (syscall(SYS_close_range, 4, ~0u, 0) != 0) { /* Linux 5.9 */
        struct { uint64_t soft, hard; } limit = {0, 0};
        syscall(SYS_prlimit64, 0, K_RLIMIT_NOFILE, NULL, &limit);
        for (unsigned int fd = 4; fd < limit.soft; fd++)
            syscall(SYS_close, fd);
    }
    /* 4, for where execveat is refused; nothing if there is no /proc here, or not ours */
    if (!hold->no_paths)
        syscall(SYS_dup3, syscall(SYS_openat, AT_FDCWD, "/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC), 4, O_CLOEXEC);
    syscall(SYS_setsid);
    /* SIG_IGN outlives execve, and means that the kernel reaps the orphans that an init gets */
    syscall(SYS_rt_sigaction, SIGCHLD, ignore, NULL, K_SIGSET_SIZE);
    return result(syscall(SYS_chdir, "/")); /* no directory is kept busy by it */
}

/* Offsets can be set until the first process is born in the namespace, or enters it by execve (Linux 6.2). */
static int set_offsets(const char *offsets, int n)
{
    int fd = result(syscall(SYS_openat, AT_FDCWD, "/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC));
    if (fd < 0)
        return fd;
    int error = syscall(SYS_write, fd, offsets, (size_t)n) < 0 ? -errno : 0;
    syscall(SYS_close, fd);
    return error;
}

/* From a root that is only a directory, as of a chroot, to that of the mount namespace: setns(2) goes there. */
static int go_to_first_root(int no_paths)
{
    if (no_paths)
        return -EPERM;
    int fd = result(syscall(SYS_openat, AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC));
    if (fd < 0)
        return fd;
    int error = result(syscall(SYS_setns, fd, CLONE_NEWNS));
    syscall(SYS_close, fd);
    return error;
}

static int make_mounts_private(void)
{
    return result(syscall(SYS_mount, "none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
}

/* Whoever is inside and has all capabilities that the init has may go to its root directory, through /proc/1/root. Ours
 * would be the way out of whatever he is confined to; here is nothing. Nor does it keep our mounts busy. */
static int leave_root(int no_paths)
{
    int error = make_mounts_private();
    if (error == -EINVAL && (error = go_to_first_root(no_paths)) == 0)
        error = make_mounts_private();
    if (error < 0)
        return error;
    /* on the root, as there may be no other directory: ".." leads from the root to what is mounted on it */
    const unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if (syscall(SYS_mount, "nsjoin", "/", "tmpfs", flags, "mode=555,nr_inodes=1") < 0 || syscall(SYS_chdir, "/..") < 0)
        return -errno;
    if (syscall(SYS_pivot_root, ".", ".") == 0)
        return result(syscall(SYS_umount2, ".", MNT_DETACH));
    return errno == EINVAL ? result(syscall(SYS_chroot, ".")) : -errno; /* EINVAL: an initramfs, which stays below */
}

static int prepare_holder(const struct holding *holding, int32_t *step)
{
    const struct nsjoin_hold *hold = holding->hold;
    *step = NSJOIN_HOLD_STDIO;
    int error = leave_everything(holding);
    if (error == 0 && (hold->nstypes & CLONE_NEWPID)) {
        *step = NSJOIN_HOLD_ROOT;
        error = leave_root(hold->no_paths);
    }
    if (error == 0 && (hold->nstypes & K_CLONE_NEWTIME)) {
        *step = NSJOIN_HOLD_TIME;
        error = result(syscall(SYS_unshare, K_CLONE_NEWTIME));
    }
    if (error == 0 && holding->n_offsets) {
        *step = NSJOIN_HOLD_OFFSETS;
        error = set_offsets(holding->offsets, holding->n_offsets);
    }
    if (error == 0 && hold->propagation) {
        *step = NSJOIN_HOLD_PROPAGATION;
        error = result(syscall(SYS_mount, "none", "/", NULL, MS_REC | hold->propagation, NULL));
    }
    return error;
}

/* The same rules as for become_joiner. */
__attribute__((no_sanitize_address)) static int become_holder(void *argument)
{
    static char *const holder_argv[] = {"nsjoin-holder", "0", NULL}, *const no_environment[] = {NULL};
    static char *const init_argv[] = {"nsjoin-holder", "0", "init", NULL};
    const struct holding *holding = argument;
    char *const *argv = holding->hold->nstypes & CLONE_NEWPID ? init_argv : holder_argv;
    int error = prepare_holder(holding, &holding->report->step);
    if (error == 0) {
        holding->report->step = NSJOIN_HOLD_EXEC;
        error = result(syscall(SYS_execveat, 2, "", argv, no_environment, K_AT_EMPTY_PATH));
        if ((error == -ENOSYS || error == -EPERM) && syscall(SYS_fchdir, 4) == 0) /* a seccomp filter */
            error = result(syscall(SYS_execve, "2", argv, no_environment));
    }
    holding->report->error = error;
    _exit(127);
}

static int start_holder(struct holding *holding, int flags)
{
    _Alignas(64) char stack[16384];
    flags |= (int)(holding->hold->nstypes & ~(uint32_t)K_CLONE_NEWTIME) | CLONE_VFORK | CLONE_PARENT_SETTID | SIGCHLD;
    int pid = clone(become_holder, stack + sizeof stack, flags | CLONE_VM, holding, &holding->report->pid);
    if (pid < 0 && errno == EINVAL) /* as in start; and a type that the kernel lacks is EINVAL again */
        pid = clone(become_holder, stack + sizeof stack, flags, holding, &holding->report->pid);
    return pid < 0 ? -errno : 0;
}

static int join_user(const struct holding *holding)
{
    /* this is a copy of the caller, which nobody in the user namespace is to look into: a change of credentials shows it */
    if (syscall(SYS_prctl, K_PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || syscall(SYS_setns, holding->hold->user, CLONE_NEWUSER) < 0)
        return -errno;
    return result(syscall(SYS_prctl, K_PR_SET_DUMPABLE, 0, 0, 0, 0));
}

/* A process between the caller and the init, in memory of its own: in the caller's, whose credentials stay as they are, it
 * may not change the dumpable flag. The init becomes the caller's child all the same. */
static int become_middle(void *argument)
{
    struct holding *holding = argument;
    holding->report->step = NSJOIN_HOLD_USER;
    int error = join_user(holding);
    if (error == 0) {
        holding->report->step = NSJOIN_HOLD_CLONE;
        error = start_holder(holding, CLONE_NEWNS | CLONE_PARENT);
    }
    if (error < 0)
        holding->report->error = error;
    _exit(0);
}

static int start_middle(struct holding *holding)
{
    _Alignas(64) char stack[32768];
    int pid = clone(become_middle, stack + sizeof stack, CLONE_VFORK | SIGCHLD, holding);
    if (pid < 0)
        return -errno;
    syscall(SYS_wait4, pid, NULL, K_WALL, NULL); /* ECHILD: reaped by the kernel (SIGCHLD is ignored) or another thread */
    return holding->report->error == 0 && holding->report->pid == 0 ? -ECHILD : 0; /* killed */
}

static int start_any(struct holding *holding)
{
    if (holding->hold->user >= 0)
        return start_middle(holding);
    return start_holder(holding, holding->hold->nstypes & CLONE_NEWPID ? CLONE_NEWNS : 0); /* for leave_root */
}

/* Not while another thread forks: its child would close a number that is no copy of ours. */
static void close_writer(int32_t *fd)
{
    pthread_mutex_lock(&coming_and_going);
    close_one(fd);
    pthread_mutex_unlock(&coming_and_going);
}

/* CLONE_VFORK lets us go on in the middle of execve, when the child has not yet its own memory: who may look into it, and
 * so at its namespaces, is then still judged as for ours. It has when its descriptors are closed. What another thread
 * has made by clone(2) or _Fork(3) may have a copy of this one: then we do not wait for ever. */
static void wait_for_exec(struct holding *holding)
{
    struct pollfd news = {holding->barrier, POLLIN, 0};
    close_writer(&holding->hold->barrier);
    poll(&news, 1, 1000);
}

static int hold_in_report(struct holding *holding)
{
    uint64_t mask;
    int error = nsjoin_block_signals(&mask);
    if (error == 0) {
        error = start_any(holding);
        if (error == 0)
            wait_for_exec(holding);
        nsjoin_restore_signals(&mask);
    }
    holding->hold->step = holding->report->step;
    holding->hold->pid = holding->report->pid;
    return error < 0 ? error : holding->report->error;
}

static int open_pipes(struct holding *holding)
{
    int error = stand_by();
    if (error < 0)
        return error;
    pthread_mutex_lock(&coming_and_going);
    add_link(&holding->hold->link, &holding->hold->tie, 2);
    add_link(&holding->link, &holding->tie, 2);
    error = open_pipe(&holding->tie, &holding->hold->tie);
    if (error == 0)
        error = open_pipe(&holding->barrier, &holding->hold->barrier);
    pthread_mutex_unlock(&coming_and_going);
    return error;
}

int nsjoin_hold(struct nsjoin_hold *hold, int image, const char *offsets, int n_offsets)
{
    struct holding holding = {.hold = hold, .tie = -1, .barrier = -1, .image = image, .offsets = offsets};
    holding.n_offsets = n_offsets;
    int error = open_pipes(&holding);
    if (error == 0) {
        holding.report = mmap(NULL, sizeof *holding.report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        error = holding.report == MAP_FAILED ? -errno : hold_in_report(&holding);
        if (holding.report != MAP_FAILED)
            munmap(holding.report, sizeof *holding.report);
    }
    close_writer(&hold->barrier);
    pthread_mutex_lock(&coming_and_going);
    close_all(&holding.link);
    pthread_mutex_unlock(&coming_and_going);
    if (hold->stays || error < 0)
        nsjoin_untie(hold);
    return error;
}

void nsjoin_untie(struct nsjoin_hold *hold)
{
    pthread_mutex_lock(&coming_and_going);
    close_all(&hold->link);
    pthread_mutex_unlock(&coming_and_going);
}
