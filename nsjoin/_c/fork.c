/* The forked child of a call: its fork, its way inside, its message.
 *
 * In C: while parent and child share pages, every write from Python, even to a reference count, costs a copy-on-write
 * fault. */

#include "steps.h"

/* Records in control[1]: the child of the process in the middle was born, and was reaped. */
enum { NSJOIN_BORN = 'b', NSJOIN_REAPED = 'r' };

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
    if (error == 0 && call->plan->flags & NSJOIN_FORK)
        error = open_pair(call->control);
    if (error == 0 && call->plan->flags & NSJOIN_FORK)
        error = result(setsockopt(call->control[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    if (error == 0)
        call->self = lifted(nsjoin_pidfd_open(call->caller, 0)); /* Linux 5.3 */
    if (error == 0 && call->plan->flags & NSJOIN_FORK) {
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
 * For a moment the child is there without being undumpable. A process that uses that must hold all its capabilities or
 * CAP_SYS_PTRACE (ptrace(2), PTRACE_MODE_READ); if CAP_SYS_PTRACE is one of them, he may look into it anyway. */
static void go_where_the_child_is_born(struct nsjoin_call *call)
{
    if (!(call->plan->flags & NSJOIN_FORK))
        return;
    const struct nsjoin_join *joins = at(call->plan, call->plan->joins);
    if (call->self >= 0 && nsjoin_has(K_CAP_SYS_PTRACE) == 1 && check_way_back(call->children) == 0)
        for (uint32_t i = 0; i < call->plan->n_joins && !call->is_born_inside; i++)
            if (joins[i].nstypes & CLONE_NEWPID)
                call->is_born_inside = nsjoin_setns(joins[i].fd, CLONE_NEWPID) == 0;
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

/* /proc/PID/cmdline and comm are open to every process that sees this one, dumpable or not, and a process inside can stop
 * it with SIGSTOP before its first instruction. So what could be read there is gone before the child is born, and is back
 * in the caller right after that. (From outside, ps shows the caller without its arguments for that moment.) A last byte
 * of NUL also ends what setproctitle(3) has written beyond the area. */
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

static void before_call(struct nsjoin_call *call)
{
    cover_names(call);
    go_where_the_child_is_born(call);
}

static void after_call(struct nsjoin_call *call)
{
    come_back(call);
    uncover_names(call);
}

static void in_child_of_call(struct nsjoin_call *call)
{
    nsjoin_prctl(K_PR_SET_DUMPABLE, 0);
    drop_link(&call->link); /* these stay open */
}

int nsjoin_begin_fork(struct nsjoin_call *call)
{
    int error = nsjoin_block_signals(&call->sigmask);
    if (error == 0) {
        call->is_blocked = 1;
        hooks = (struct fork_hooks){before_call, after_call, in_child_of_call, call};
    }
    return error;
}

int nsjoin_end_fork(struct nsjoin_call *call)
{
    hooks = (struct fork_hooks){NULL, NULL, NULL, NULL};
    if (call->is_blocked)
        nsjoin_restore_signals(&call->sigmask);
    call->is_blocked = 0;
    pthread_mutex_lock(&coming_and_going);
    close_ends(call, 1);
    pthread_mutex_unlock(&coming_and_going);
    return call->error;
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

/* Python's handler writes to the wakeup descriptor, libuv's and libev's to pipes of their loops, and the child has copies
 * of them: a signal to the child would run the caller's handlers in the caller. libc's sigaction(2) returns EINVAL for
 * libc's own signals, which stay as they are. */
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
    syscall(SYS_write, call->control[1], &what, 1); /* of this kind of socket, no SIGPIPE; EPIPE: the caller has gone */
}

static void tell_of_birth(struct nsjoin_call *call)
{
    tell(call, NSJOIN_BORN);
}

void nsjoin_tell_of_birth(struct nsjoin_call *call)
{
    hooks = (struct fork_hooks){.in_child = tell_of_birth, .call = call};
}

void nsjoin_tell_of_end(const struct nsjoin_call *call)
{
    tell(call, NSJOIN_REAPED);
}

/* SO_PASSCRED (unix(7)): the kernel names the sender of a record, by its pid as seen from here. */
int nsjoin_left_behind(const struct nsjoin_call *call)
{
    int pid = -EAGAIN;
    for (;;) {
        _Alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof(struct ucred))];
        char what;
        struct iovec part = {&what, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        ssize_t n = recvmsg(call->control[0], &message, MSG_DONTWAIT);
        if (n < 0 && errno == ECONNRESET) /* reported once, before the records: the middle has unread records */
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

static struct nsjoin_call *joining; /* in the child: its own call */

static void fail(plan_t *plan, long result)
{
    nsjoin_give_up(joining, plan->step, plan->index, (int)-result);
}

/* It may have ended before PR_SET_PDEATHSIG. getppid(2) returns 0 where the caller is in another PID namespace. */
static int caller_is_there(const struct nsjoin_call *call)
{
    struct pollfd self = {call->self, POLLIN, 0};
    long parent = syscall(SYS_getppid);
    return self.fd >= 0 ? poll(&self, 1, 0) != 1 : parent == call->caller || parent == 0;
}

void nsjoin_go_inside(struct nsjoin_call *call)
{
    plan_t *plan = call->plan;
    joining = call;
    nsjoin_restore_signals(&call->sigmask);
    close_ends(call, 0);
    hide(plan);
    if (plan->flags & NSJOIN_DROP_GROUPS)
        drop_groups(plan);
    join(plan, call->is_born_inside ? CLONE_NEWPID : 0);
    if (plan->root >= 0)
        change_root(plan);
    if (plan->flags & NSJOIN_DROP_GROUPS)
        drop_groups(plan);
    set_ids(plan);
    hide(plan);
    begin(plan, NSJOIN_STEP_SESSION);
    must(plan, SYS5(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
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
    const struct cmsghdr *part = CMSG_FIRSTHDR(message); /* the only kind: no other was enabled */
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
