/* A thread: its own pidfd, its stay in other namespaces, and what fork(2) runs in it. */
/* This thread's own pidfd, kept for as long as the thread lives: with it, saving a namespace for the way back is one
 * ioctl instead of a walk through /proc, which may be another namespace's. The descriptor may have been closed, and its
 * number given to something else, by a program that closes all it does not know: so its inode, unique in pidfs, is
 * compared. */
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
 * calls _Fork(3) or clone(2) and does not execute anything keeps copies: nothing reports that. */
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

/* What fork(2) runs in this thread besides, each with the lock held; NULL: nothing. */
struct fork_hooks {
    void (*before)(struct nsjoin_call *call);
    void (*after)(struct nsjoin_call *call);
    void (*in_child)(struct nsjoin_call *call);
    struct nsjoin_call *call;
};
static _Thread_local struct fork_hooks hooks;

static void before_fork(void)
{
    pthread_mutex_lock(&coming_and_going);
    if (hooks.before)
        hooks.before(hooks.call);
}

static void after_fork(void)
{
    if (hooks.after)
        hooks.after(hooks.call);
    pthread_mutex_unlock(&coming_and_going);
}

static void after_fork_in_child(void)
{
    generation++;
    if (hooks.in_child)
        hooks.in_child(hooks.call);
    hooks = (struct fork_hooks){NULL, NULL, NULL, NULL};
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

/* setns(2) to a namespace wants CAP_SYS_ADMIN over its owner. Over a user namespace that is neither this thread's nor a
 * descendant of it no thread has it, and NS_GET_USERNS (Linux 4.9) returns EPERM for exactly those. */
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
         * a namespace's descriptor it returns EINVAL. */
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

static int go_to_root(int root, const char **call)
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
        error = go_to_root(trip->root, &stay->call);
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
    if (error == -EINVAL && nsjoin_unshare(CLONE_FS) == 0) /* a thread that was born inside shares its root with others */
        error = nsjoin_setns(fd, CLONE_NEWNS);
    if (error == 0) /* that was to the root of the mount namespace, the thread may come from a chroot in it */
        error = go_to_root(stay->root, &stay->call);
    if (error < 0)
        return error;
    stay->call = "fchdir";
    return result(fchdir(stay->cwd));
}

int nsjoin_leave(struct nsjoin_stay *stay)
{
    const char *call = stay->call;
    int first = 0;
    if (stay->stage == 0) /* not begun: all zero, and 0 may be stdin */
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
