/* Drives the whole shim without Python, for the sanitizers and valgrind: makes its own target, spawns in it, enters and
 * leaves it, calls in it, from one thread and then from many at once. As root. Exit status 0: every answer was right,
 * and no descriptor and no child is left.
 *
 *     driver HOLDER JOINER THREADS ROUNDS
 *
 * HOLDER and JOINER are what is executed to hold namespaces and to join them: files, or "-" for the image that is built
 * in, in a memfd. They are two, since holders are in an empty root, where a joiner with sanitizers has no libraries; and
 * valgrind 3.19 does not execute memfds.
 */
#ifdef __SANITIZE_THREAD__
#define NSJOIN_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NSJOIN_TSAN
#endif
#endif
#include <sched.h>
#ifdef NSJOIN_TSAN
/* TSan takes every clone(2) for a fork, and so a child in our memory (CLONE_VM) would take its locks and thread slots a
 * second time: "CHECK failed: (!thr->slot)". This is libc's own function by its other name, which TSan does not replace. */
int __clone(int (*)(void *), void *, int, void *, ...);
#define clone __clone
#endif
#include "_c/shim.c"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#define CHECK(what) ((what) ? (void)0 : wrong(__LINE__, #what, errno))
enum { INSIDE = CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWIPC, EXIT_STATUS = 7, SENT_FDS = 3 };

static int image, launched; /* the joiner; what is launched in its place */
/* The way into a target with a PID namespace: one pidfd or, where there are none (valgrind 3.19 answers ENOSYS), a
 * descriptor of each namespace. And into one with a mount namespace: mnt, uts. */
static struct nsjoin_join inside[4], other[2];
static int n_inside, n_other;
static uint64_t thread_mask;

static void wrong(int line, const char *what, int error)
{
    fprintf(stderr, "driver.c:%d: not so: %s (errno: %s)\n", line, what, strerror(error));
    abort();
}

static int open_image(const char *path)
{
    char link[64];
    int fd, readable;
    if (strcmp(path, "-") != 0)
        return open(path, O_RDONLY | O_CLOEXEC);
    fd = nsjoin_memfd_create("joiner", K_MFD_CLOEXEC);
    CHECK(write(fd, nsjoin_image(), (size_t)nsjoin_image_size()) == nsjoin_image_size());
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    readable = open(link, O_RDONLY | O_CLOEXEC); /* a file that is open for writing is not executed: ETXTBSY */
    close(fd);
    return readable;
}

static void reap(int pid, int expected)
{
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    if (WIFSIGNALED(status) || WEXITSTATUS(status) != expected)
        fprintf(stderr, "pid %d: status %#x\n", pid, (unsigned int)status);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == expected);
}

/* --- spawn ------------------------------------------------------------------------------------------------------------ */

struct buffer { struct nsjoin_plan head; char room[1024]; };

static uint32_t put(struct buffer *plan, const void *data, size_t size)
{
    uint32_t offset = (plan->head.size + 7) & ~7u;
    CHECK(offset + size <= sizeof *plan);
    memcpy((char *)plan + offset, data, size);
    plan->head.size = offset + (uint32_t)size;
    return offset;
}

/* Ascending, as keep has to be: what the joiner needs, and for the launch the plan as well. */
static int lend(const struct nsjoin_work *work, int32_t *fds, int with_plan)
{
    int n = 0;
    for (; n < n_inside; n++)
        fds[n] = inside[n].fd;
    CHECK(work->barrier[1] > fds[n - 1]);
    fds[n++] = work->barrier[1];
    if (with_plan)
        fds[n++] = work->plan;
    return n;
}

static void write_plan(struct nsjoin_work *work, uint32_t nstypes, const char *file)
{
    static const char rest[] = "sh\0-c\0exit $STATUS\0STATUS=7";
    char text[sizeof rest + 64];
    struct nsjoin_join joins[4];
    int32_t keep[8];
    int n = lend(work, keep, 0), n_lent = n + 1;
    int32_t private[8];
    size_t length = strlen(file) + 1;
    lend(work, private, 1);
    memcpy(joins, inside, sizeof joins);
    for (int i = 0; i < n_inside; i++)
        joins[i].nstypes &= nstypes;
    struct buffer plan = {.head = {
        .stdio = {-1, -1, -1}, .root = -1, .witness = -1, .environ = -1, .cwd_fd = -1, .cgroup = -1, .umask = 022,
        .flags = NSJOIN_CLOSE_FDS | NSJOIN_RESTORE_SIGNALS | NSJOIN_SETSID | NSJOIN_UMASK | NSJOIN_CHECK_CWD |
                 (nstypes & CLONE_NEWPID ? NSJOIN_FORK : 0u),
        .size = sizeof plan.head, .n_lent = (uint32_t)n_lent, .n_keep = (uint32_t)n,
        .n_joins = (uint32_t)n_inside, .n_files = 1, .n_argv = 3, .n_envp = 1,
    }};
    char pointers[(1 + 3 + 1 + 3) * sizeof(void *)] = {0};
    plan.head.tables = put(&plan, pointers, sizeof pointers);
    plan.head.joins = put(&plan, joins, sizeof joins);
    plan.head.keep = put(&plan, keep, (size_t)n * sizeof *keep);
    plan.head.lent = put(&plan, private, (size_t)n_lent * sizeof *private);
    plan.head.cwd = put(&plan, "/", 2);
    memcpy(text, file, length);
    memcpy(text + length, rest, sizeof rest);
    plan.head.text = put(&plan, text, length + sizeof rest);
    CHECK(pwrite(work->plan, &plan, plan.head.size, 0) == (ssize_t)plan.head.size);
}

static void spawn(uint32_t nstypes, const char *file, int error)
{
    struct nsjoin_work work = {.plan = -1, .barrier = {-1, -1}};
    struct { int32_t pid, step, index, error; } report;
    char number[12];
    CHECK(nsjoin_prepare(&work) == 0);
    write_plan(&work, nstypes, file);
    int32_t lent[8];
    int n_lent = lend(&work, lent, 1);
    snprintf(number, sizeof number, "%d", work.plan);
    /* at home only where memory is shared, which valgrind's clone does not do: our pid is not in the copy */
    CHECK(nsjoin_launch(&work, launched, number, lent, n_lent, n_inside == 1) > 0);
    nsjoin_close_barrier(&work);
    struct pollfd barrier = {work.barrier[0], POLLIN, 0};
    CHECK(poll(&barrier, 1, 60000) == 1);
    CHECK(pread(work.plan, &report, sizeof report, 0) == sizeof report);
    if (report.step != NSJOIN_STEP_EXEC || report.error != error)
        fprintf(stderr, "step %d index %d error %d\n", report.step, report.index, report.error);
    CHECK(report.step == NSJOIN_STEP_EXEC && report.error == error);
    CHECK((report.pid != 0) == ((nstypes & CLONE_NEWPID) != 0));
    if (report.pid)
        reap(report.pid, error ? 0 : EXIT_STATUS);
    reap(work.joiner, report.pid || error ? 0 : EXIT_STATUS);
    nsjoin_finish(&work);
}

/* --- enter ------------------------------------------------------------------------------------------------------------ */

static uint64_t inode_of(const char *name)
{
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/thread-self/ns/%s", name);
    CHECK(stat(path, &found) == 0);
    return found.st_ino;
}

enum { GET_IPC = 0xff02, GET_MNT = 0xff03, GET_UTS = 0xff0a }; /* linux/pidfd.h */

static void save_by_path(struct nsjoin_stay *stay, int i, const char *path)
{
    stay->is_given = 1;
    stay->saved[i] = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(stay->saved[i] > 2);
    stay->n = i + 1;
}

static struct nsjoin_trip trip_to(const struct nsjoin_join *way, int n, uint32_t nstypes)
{
    struct nsjoin_trip trip = {.n = 2, .nstypes = {CLONE_NEWUTS}, .requests = {GET_UTS}, .root = -1, .check_way_back = 1};
    trip.nstypes[1] = nstypes & ~(uint32_t)CLONE_NEWUTS;
    trip.requests[1] = nstypes & CLONE_NEWNS ? GET_MNT : GET_IPC;
    for (int i = 0; i < n; i++) {
        trip.moves[trip.n_moves].fd = way[i].fd;
        trip.moves[trip.n_moves].nstypes = way[i].nstypes & nstypes;
        trip.n_moves += (way[i].nstypes & nstypes) != 0;
    }
    return trip;
}

static void enter(const struct nsjoin_join *way, int n, uint32_t nstypes)
{
    const char *second = nstypes & CLONE_NEWNS ? "mnt" : "ipc";
    struct nsjoin_trip trip = trip_to(way, n, nstypes);
    struct nsjoin_stay stay = {0};
    if (n > 1) {
        save_by_path(&stay, 0, "/proc/thread-self/ns/uts");
        save_by_path(&stay, 1, nstypes & CLONE_NEWNS ? "/proc/thread-self/ns/mnt" : "/proc/thread-self/ns/ipc");
    }
    uint64_t uts = inode_of("uts"), other_one = inode_of(second);
    CHECK(nsjoin_enter(&stay, &trip) == 0);
    CHECK(inode_of("uts") != uts && inode_of(second) != other_one);
    CHECK(n > 1 || nsjoin_is_shared(way->fd, GET_UTS) == 1);
    CHECK(nsjoin_leave(&stay) == 0);
    CHECK(inode_of("uts") == uts && inode_of(second) == other_one);
}

/* The second of two moves is refused; the first is undone. */
static void enter_half(void)
{
    struct nsjoin_trip trip = trip_to(inside, n_inside, CLONE_NEWUTS);
    struct nsjoin_stay stay = {0};
    trip.n = 1;
    trip.moves[trip.n_moves].fd = 0x7fffffff;
    trip.moves[trip.n_moves++].nstypes = CLONE_NEWNET;
    if (n_inside > 1)
        save_by_path(&stay, 0, "/proc/thread-self/ns/uts");
    uint64_t before = inode_of("uts");
    CHECK(nsjoin_enter(&stay, &trip) == -EBADF);
    CHECK(stay.stage == NSJOIN_MOVE && stay.failed == 1 && inode_of("uts") == before);
}

/* --- call ------------------------------------------------------------------------------------------------------------- */

static void answer(struct nsjoin_call *call)
{
    static char text[] = "from inside";
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(SENT_FDS * sizeof(int))] = {0};
    call->head = (struct nsjoin_head){1, 2, 3, 4, sizeof text};
    struct iovec parts[] = {{&call->head, sizeof call->head}, {text, sizeof text}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(SENT_FDS * sizeof(int));
    for (size_t i = 0; i < SENT_FDS; i++)
        memcpy(CMSG_DATA(part) + i * sizeof(int), &call->channel[1], sizeof(int));
    _exit(sendmsg(call->channel[1], &message, 0) < 0 ? 1 : EXIT_STATUS);
}

static int call_inside(struct nsjoin_call *call, uint32_t flags, int broken)
{
    struct buffer plan = {.head = {.flags = flags, .root = -1, .witness = -1, .size = sizeof plan.head}};
    struct nsjoin_join joins[4];
    uint32_t n = 0;
    for (int i = 0; i < n_inside; i++) {
        joins[n] = inside[i];
        joins[n].nstypes &= INSIDE;
        n += joins[n].nstypes != 0;
    }
    if (broken)
        joins[0].fd = 0x7fffffff;
    plan.head.joins = put(&plan, joins, sizeof joins);
    plan.head.n_joins = n;
    call->plan = &plan.head;
    int error = nsjoin_open_call(call);
    CHECK(error == 0 || (error == -ENOSYS && n_inside > 1));
    CHECK(nsjoin_begin_fork(call) == 0);
    int pid = fork();
    if (pid == 0) {
        nsjoin_go_inside(call);
        answer(call);
    }
    CHECK(nsjoin_end_fork(call) == 0);
    CHECK(pid > 0 && (nsjoin_watch(call, pid) >= 0 || n_inside > 1));
    struct pollfd channel = {call->channel[0], POLLIN, 0};
    CHECK(poll(&channel, 1, 60000) == 1);
    return pid;
}

static void call(uint32_t flags)
{
    struct nsjoin_call call = {0};
    char text[64] = "";
    int pid = call_inside(&call, flags, 0);
    CHECK(nsjoin_next_length(&call) == 12);
    CHECK(nsjoin_receive(&call, text) == 0);
    CHECK(strcmp(text, "from inside") == 0 && call.n_fds == SENT_FDS && call.head.error == 4);
    reap(pid, EXIT_STATUS);
    CHECK(nsjoin_next_length(&call) == -ENODATA);
    nsjoin_close_call(&call);
}

static void call_refused(void)
{
    struct nsjoin_call call = {0};
    int pid = call_inside(&call, 0, 1);
    CHECK(nsjoin_next_length(&call) == 0 && nsjoin_receive(&call, NULL) == 0);
    CHECK(call.head.step == NSJOIN_STEP_JOIN && call.head.error == EBADF);
    reap(pid, 255);
    nsjoin_close_call(&call);
}

/* --- hold, signals ---------------------------------------------------------------------------------------------------- */

static void hold(struct nsjoin_hold *hold, uint32_t nstypes)
{
    *hold = (struct nsjoin_hold){.nstypes = nstypes, .user = -1, .tie = -1, .barrier = -1};
    int error = nsjoin_hold(hold, image, NULL, 0);
    if (error < 0)
        fprintf(stderr, "hold: step %d, error %d\n", hold->step, -error);
    CHECK(error == 0);
    CHECK(hold->pid > 0 && hold->tie > 2);
}

static void release(struct nsjoin_hold *hold)
{
    nsjoin_untie(hold);
    reap(hold->pid, 0);
}

static void hold_one(uint32_t nstypes)
{
    struct nsjoin_hold one;
    hold(&one, nstypes);
    release(&one);
}

static void signals(void)
{
    uint64_t before = 0, all = 0, after = 0;
    CHECK(nsjoin_block_signals(&before) == 0 && nsjoin_block_signals(&all) == 0);
    CHECK(before == thread_mask && (all | 1 << (SIGKILL - 1) | 1 << (SIGSTOP - 1)) == ~(uint64_t)0);
    CHECK(nsjoin_restore_signals(&before) == 0 && nsjoin_block_signals(&after) == 0 && after == before);
    CHECK(nsjoin_restore_signals(&before) == 0);
}

/* --- all of it -------------------------------------------------------------------------------------------------------- */

static void *all(void *rounds)
{
    for (int i = *(int *)rounds; i > 0; i--) {
        spawn(INSIDE, "/bin/sh", 0);
        spawn(INSIDE | CLONE_NEWPID, "/bin/sh", 0);
        spawn(INSIDE | CLONE_NEWPID, "/no such file", ENOENT);
        enter(inside, n_inside, CLONE_NEWUTS | CLONE_NEWIPC);
        enter_half();
        call(0);
        call(NSJOIN_FORK);
        call_refused();
        hold_one(CLONE_NEWUTS);
        signals();
    }
    return NULL;
}

static int descriptors(void)
{
    int n = 0;
    DIR *list = opendir("/proc/self/fd");
    while (readdir(list))
        n++;
    closedir(list);
    return n;
}

static void from_threads(int n, int rounds)
{
    pthread_t threads[64];
    CHECK(n <= 64);
    for (int i = 0; i < n; i++)
        CHECK(pthread_create(&threads[i], NULL, all, &rounds) == 0);
    for (int i = 0; i < n; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static int open_way(struct nsjoin_join *way, int pid, uint32_t nstypes)
{
    static const struct { const char *name; uint32_t flag; } types[] = {
        {"uts", CLONE_NEWUTS}, {"net", CLONE_NEWNET}, {"ipc", CLONE_NEWIPC}, {"mnt", CLONE_NEWNS}, {"pid", CLONE_NEWPID},
    };
    char path[64];
    int n = 0, pidfd = nsjoin_pidfd_open(pid, 0);
    way[0] = (struct nsjoin_join){pidfd, nstypes, 0};
    CHECK(pidfd > 2 || pidfd == -ENOSYS);
    for (size_t i = 0; pidfd < 0 && i < sizeof types / sizeof *types; i++) {
        if (!(nstypes & types[i].flag))
            continue;
        snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, types[i].name);
        way[n] = (struct nsjoin_join){open(path, O_RDONLY | O_CLOEXEC), types[i].flag, 0};
        CHECK(way[n++].fd > 2);
    }
    return pidfd < 0 ? n : 1;
}

static void close_way(const struct nsjoin_join *way, int n)
{
    while (n > 0)
        close(way[--n].fd);
}

int main(int argc, char **argv)
{
    CHECK(argc == 5);
    int n = atoi(argv[3]), rounds = atoi(argv[4]);
    CHECK(syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &thread_mask, K_SIGSET_SIZE) == 0);
    image = lifted(open_image(argv[1]));
    launched = lifted(open_image(argv[2]));
    CHECK(image > 2 && launched > 2);
    int has_pidfds = nsjoin_own(GET_UTS) > 2; /* opens this thread's pidfd too, which stays; the namespace stays as well */
    /* valgrind has no pivot_root either, without which there is no init; a child of the joiner is asked for all the same */
    struct nsjoin_hold first, second;
    hold(&first, INSIDE | (has_pidfds ? CLONE_NEWPID : 0));
    hold(&second, CLONE_NEWNS | CLONE_NEWUTS);
    n_inside = open_way(inside, first.pid, INSIDE | CLONE_NEWPID);
    n_other = open_way(other, second.pid, CLONE_NEWNS | CLONE_NEWUTS);
    int before = descriptors();
    all(&rounds);
    enter(other, n_other, CLONE_NEWUTS | CLONE_NEWNS);
    if (has_pidfds)
        hold_one(CLONE_NEWNS | CLONE_NEWPID | K_CLONE_NEWTIME);
    from_threads(n, rounds);
    CHECK(descriptors() == before);
    close_way(inside, n_inside);
    close_way(other, n_other);
    release(&first);
    release(&second);
    CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
    printf("%d rounds in one thread, %d in each of %d; %s\n", rounds, rounds, n,
           has_pidfds ? "by pidfd" : "by a descriptor of each namespace");
    return 0;
}
