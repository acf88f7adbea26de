/* Starts a holder: a process that is born in new namespaces and keeps them. */
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
    /* 4, for where execveat is refused; nothing if there is no /proc here, or another's */
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

/* A process inside that has all of the init's capabilities may go to its root directory, through /proc/1/root. Ours
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
    /* this is a copy of the caller, which no process in the user namespace may look into: a change of credentials makes
     * it dumpable */
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

/* Not while another thread forks: its child would close a number that is no copy of this one. */
static void close_writer(int32_t *fd)
{
    pthread_mutex_lock(&coming_and_going);
    close_one(fd);
    pthread_mutex_unlock(&coming_and_going);
}

/* With CLONE_VFORK the caller resumes in the middle of execve, before the child has its own memory: access to it, and so
 * at its namespaces, is then still judged as for the caller. The child has it when its descriptors are closed. What
 * another thread has made by clone(2) or _Fork(3) may have a copy of this one: so the wait is limited. */
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
