/* Starts the joiner, with a plan in a file and a pipe that hangs up when all has been executed. */
#include "joiner_image.h" /* the joiner as bytes: static const unsigned char joiner_image[] */

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
 * with execveat. ASan would mark this frame in memory that is the caller's too, and there is no return to clear the
 * marks. */
__attribute__((no_sanitize_address)) static int become_joiner(void *argument)
{
    static char *const no_environment[] = {NULL};
    const struct launch *launch = argument;
    int32_t report[3] = {NSJOIN_STEP_LAUNCH, 0, 0}; /* step; index: 1 for fcntl, 0 for execveat; error */
    int n = 0;
    /* Once more, for kernels that do not report it beforehand: the kernel has written this pid as the caller sees it. If
     * it differs here, setns(CLONE_NEWPID) came before: the joiner could join only descendants of that namespace, and the
     * pid of our child would be written as seen from it. */
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

/* A seccomp filter may forbid memfds. The file has no name, so no other process can open it by a path. */
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
    _Alignas(64) char stack[16384]; /* a part of the caller's stack, which is suspended until the child has exec'd */
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
